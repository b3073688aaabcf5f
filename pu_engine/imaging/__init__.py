"""Images from bytes: archives, header gate, decoding, resizing, hashing, preprocessing, thumbnails."""
