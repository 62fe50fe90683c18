"""The networks: nn.Modules and their configurations. No files, no stores, no devices chosen here."""
