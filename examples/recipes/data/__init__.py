"""The data sets as Lightning data modules, read by torchvision and tonic."""
