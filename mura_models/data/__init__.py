"""From files on disk to one table of images, their folds and their pixels."""
