"""The networks: nn.Modules and their configurations. No files but the published encoder's, no devices chosen here."""
