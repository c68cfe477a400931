//! The compiled programs: just as much of ELF as the compiler makes for them.

use super::sys::{MapShape, ProgramKind};

/// What is in an object file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Object {
    /// Maps by name, in their order in the file.
    pub(super) maps: Vec<(String, MapShape)>,
    pub(super) programs: Vec<Code>,
    pub(super) license: String,
}

/// One program, not yet tied to its maps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Code {
    pub(super) name: String,
    pub(super) kind: ProgramKind,
    instructions: Vec<u8>,
    /// Where a map is referred to, in bytes, and which one, by its place in [`Object::maps`].
    references: Vec<(usize, usize)>,
}

impl Object {
    /// Reads an object file; `None` if it is not one of ours.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let native = if cfg!(target_endian = "little") { 1 } else { 2 };
        // Magic, 64 bits, byte order.
        if bytes.get(..6)? != [0x7f, b'E', b'L', b'F', 2, native] || u16_at(bytes, 18)? != EM_BPF {
            return None;
        }
        let sections = sections(bytes)?;
        let names = sections.get(usize::from(u16_at(bytes, 62)?))?.body;
        let named = |name: &str| {
            let at = sections.iter().position(|it| text_at(names, it.name) == Some(name))?;
            Some((at, sections[at]))
        };
        let (_, table) = named(".symtab")?;
        let strings = sections.get(table.link)?.body;
        let symbols: Vec<_> = table.body.chunks_exact(SYMBOL_BYTES).map(Symbol::parse).collect();
        let defined_in = |section: usize| {
            let mut found: Vec<_> = symbols
                .iter()
                .filter(|it| it.section == section && it.is_global())
                .filter_map(|it| Some((it.value, text_at(strings, it.name)?.to_owned())))
                .collect();
            found.sort();
            found
        };

        let (maps_at, map_section) = named("maps")?;
        let maps = defined_in(maps_at)
            .into_iter()
            .map(|(at, name)| Some((name, shape(map_section.body.get(at..)?)?)))
            .collect::<Option<Vec<_>>>()?;
        let mut programs = Vec::new();
        for (section, kind) in [
            ("lwt_xmit", ProgramKind::LwtXmit),
            ("tc", ProgramKind::SchedCls),
            ("tc_return", ProgramKind::SchedCls),
        ] {
            let (at, code) = named(section)?;
            let (_, name) = defined_in(at).into_iter().next()?;
            let (_, relocations) = named(&format!(".rel{section}"))?;
            let references = relocations
                .body
                .chunks_exact(RELOCATION_BYTES)
                .map(|relocation| {
                    let offset = usize::try_from(u64_at(relocation, 0)?).ok()?;
                    let symbol = symbols.get(u32_at(relocation, 12)? as usize)?;
                    let map = symbol.value / MAP_BYTES;
                    let fits = u32_at(relocation, 8)? == R_BPF_64_64
                        && symbol.section == maps_at
                        && map < maps.len()
                        && offset.checked_add(2 * INSTRUCTION_BYTES)? <= code.body.len();
                    fits.then_some((offset, map))
                })
                .collect::<Option<Vec<_>>>()?;
            programs.push(Code { name, kind, instructions: code.body.to_vec(), references });
        }
        let (_, license) = named("license")?;
        Some(Self { maps, programs, license: text_at(license.body, 0)?.to_owned() })
    }
}

impl Code {
    /// The instructions, with `descriptor` asked for each map by its place in [`Object::maps`].
    pub(super) fn with_maps(&self, descriptor: impl Fn(usize) -> i32) -> Vec<u8> {
        let mut instructions = self.instructions.clone();
        for (offset, map) in &self.references {
            // The upper half of the second byte is the source register, which says what kind of constant is loaded.
            instructions[offset + 1] = instructions[offset + 1] & 0x0f | PSEUDO_MAP_FD << 4;
            instructions[offset + 4..offset + 8].copy_from_slice(&descriptor(*map).to_ne_bytes());
        }
        instructions
    }
}

#[derive(Clone, Copy)]
struct Section<'a> {
    name: usize,
    link: usize,
    body: &'a [u8],
}

fn sections(bytes: &[u8]) -> Option<Vec<Section<'_>>> {
    let start = usize::try_from(u64_at(bytes, 40)?).ok()?;
    let headers = bytes.get(start..)?.chunks_exact(SECTION_BYTES);
    headers
        .take(usize::from(u16_at(bytes, 60)?))
        .map(|header| {
            let offset = usize::try_from(u64_at(header, 24)?).ok()?;
            let size = usize::try_from(u64_at(header, 32)?).ok()?;
            Some(Section {
                name: u32_at(header, 0)? as usize,
                link: u32_at(header, 40)? as usize,
                body: bytes.get(offset..offset.checked_add(size)?)?,
            })
        })
        .collect()
}

struct Symbol {
    name: usize,
    binding: u8,
    section: usize,
    value: usize,
}

impl Symbol {
    /// From exactly [`SYMBOL_BYTES`].
    fn parse(bytes: &[u8]) -> Self {
        Self {
            name: u32_at(bytes, 0).unwrap_or(0) as usize,
            binding: bytes[4] >> 4,
            section: u16_at(bytes, 6).unwrap_or(0).into(),
            value: u64_at(bytes, 8).and_then(|it| usize::try_from(it).ok()).unwrap_or(usize::MAX),
        }
    }

    /// Not a jump label.
    fn is_global(&self) -> bool {
        self.binding == STB_GLOBAL
    }
}

/// `struct map` of udp.bpf.c.
fn shape(bytes: &[u8]) -> Option<MapShape> {
    Some(MapShape {
        kind: u32_at(bytes, 0)?,
        key_bytes: u32_at(bytes, 4)?,
        value_bytes: u32_at(bytes, 8)?,
        max_entries: u32_at(bytes, 12)?,
        flags: u32_at(bytes, 16)?,
    })
}

fn text_at(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    str::from_utf8(&rest[..rest.iter().position(|byte| *byte == 0)?]).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

// elf.h and linux/bpf.h
const EM_BPF: u16 = 247;
const STB_GLOBAL: u8 = 1;
const R_BPF_64_64: u32 = 1;
const PSEUDO_MAP_FD: u8 = 1;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const RELOCATION_BYTES: usize = 16;
const INSTRUCTION_BYTES: usize = 8;
/// The size of `struct map` in udp.bpf.c.
const MAP_BYTES: usize = 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bpf::programs::OBJECT;

    #[test]
    fn our_object_has_programs_that_use_its_maps() {
        let object = Object::parse(OBJECT).unwrap();
        let names: Vec<_> = object.programs.iter().map(|it| (it.name.as_str(), it.kind)).collect();
        let expected = [
            ("flannel_send", ProgramKind::LwtXmit),
            ("flannel_receive", ProgramKind::SchedCls),
            ("flannel_return", ProgramKind::SchedCls),
        ];
        assert_eq!(names, expected);
        let maps: Vec<_> = object.maps.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(maps, ["endpoints4", "endpoints6", "peers", "config", "counts"]);
        assert_eq!(object.license, "Apache-2.0");
        let send = &object.programs[0];
        let code = send.with_maps(|map| 70 + map as i32);
        let fds: Vec<_> = send.references.iter().map(|(at, _)| code[at + 4]).collect();
        // Each family asks for the settings and for an endpoint, and one of the two is counted.
        assert_eq!(fds, [73, 70, 73, 71, 74]);
        assert!(send.references.iter().all(|(at, _)| code[at + 1] >> 4 == PSEUDO_MAP_FD));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Object::parse(&bytes);
        }

        #[test]
        fn no_damage_to_an_object_panics(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20), cut: prop::sample::Index) {
            let mut bytes = OBJECT.to_vec();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(object) = Object::parse(&bytes) {
                for code in &object.programs {
                    let _ = code.with_maps(|map| map as i32);
                }
            }
            bytes.truncate(cut.index(bytes.len()));
            let _ = Object::parse(&bytes);
        }
    }
}
