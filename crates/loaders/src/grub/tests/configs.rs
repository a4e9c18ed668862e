//! Configurations as the distributions' tools write them.

#[test]
fn placeholder() {}
