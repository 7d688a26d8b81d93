"""How fast the parts are; each is run by itself."""
