"""Several methods and seeds side by side: settings -> runs -> outcome -> page."""
