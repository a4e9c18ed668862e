//! A VM outlives its process: the files that name it, and how a running one is spoken to.
#![forbid(unsafe_code)]
