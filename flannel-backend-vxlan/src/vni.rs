use std::fmt;

/// The identifier of a VXLAN network, 24 bits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Vni(u32);

impl Vni {
    /// The largest there is.
    pub(crate) const MAX: u32 = 0x00ff_ffff;

    /// `None` if it needs more than 24 bits.
    pub(crate) const fn new(number: u32) -> Option<Self> {
        if number <= Self::MAX { Some(Self(number)) } else { None }
    }

    pub(crate) const fn number(self) -> u32 {
        self.0
    }
}

impl Default for Vni {
    /// 1, as flannel's `defaultVNI`.
    fn default() -> Self {
        Self(1)
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vni_has_24_bits() {
        assert_eq!(Vni::new(Vni::MAX).map(Vni::number), Some(16_777_215));
        assert_eq!(Vni::new(Vni::MAX + 1), None);
        assert_eq!(Vni::default().to_string(), "1");
    }
}
