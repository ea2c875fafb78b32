//! Every check and task of the Vellum workspace.
fn main() {}
