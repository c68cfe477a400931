//! On kernels with what test machines may lack: VLANs on bridges, policing, and no nf_tables.

#[path = "vm/absent.rs"]
mod absent;
#[path = "vm/bandwidth.rs"]
mod bandwidth;
#[path = "upstream/explained.rs"]
mod explained;
#[path = "upstream/matrix.rs"]
#[expect(dead_code, reason = "tables of other tests have more kinds of steps")]
mod matrix;
#[path = "upstream/observed.rs"]
mod observed;
#[path = "netns/support.rs"]
mod support;
#[path = "upstream/theirs.rs"]
mod theirs;
#[path = "vm/vlans.rs"]
mod vlans;
