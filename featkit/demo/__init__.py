"""The rendered courtyard: a small 3D scene with exact cameras, for `featkit demo`, `featkit doctor` and the tests."""
