"""From rasters and made-up scenes to chips, splits and prepared records, and reading them."""
