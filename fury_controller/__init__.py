"""The controller's part of Fury in plain Python; the action plugins in plugins/action are its thin shells."""
