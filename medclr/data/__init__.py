"""From files to prepared volumes: readers, manifest, store, labels. No torch here."""
