//! Where the leases of a container network live: memory, a shared folder, and any key-value database.
#![forbid(unsafe_code)]
