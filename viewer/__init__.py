"""The live browser viewer of splatgen."""
