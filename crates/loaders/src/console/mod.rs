//! A terminal to ask on: output, keys, a line editor with history and completion.
