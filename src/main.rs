//! The `northgate` command.

fn main() {}
