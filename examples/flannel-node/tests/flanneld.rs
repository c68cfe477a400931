//! Beside the real flanneld, which `./ci.sh flanneld` builds.

#[path = "flanneld"]
mod flanneld {
    mod configurations;
    mod extension;
    mod mixed;
    mod options;
    mod support;
    mod take_over;
    mod udp_peer;
    mod way_back;
}
