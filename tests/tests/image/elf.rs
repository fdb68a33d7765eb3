//! As much of an ELF file (64 bit, little endian) as tells what it needs to run.

/// What is known of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Elf {
    /// As Rust names it.
    pub machine: &'static str,
    /// Another program has to load it (PT_INTERP).
    pub interpreter: bool,
    /// Libraries that it names (DT_NEEDED).
    pub needed: usize,
    /// It has a table of symbols (SHT_SYMTAB).
    pub symbols: bool,
}

const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NEEDED: u64 = 1;
const SHT_SYMTAB: u64 = 2;

impl Elf {
    /// Reads the headers; nothing when it is no such file.
    pub fn read(file: &[u8]) -> Option<Self> {
        if file.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let machine = match number(file, 18, 2)? {
            62 => "x86_64",
            183 => "aarch64",
            _ => return None,
        };
        let mut elf = Elf { machine, interpreter: false, needed: 0, symbols: false };
        let [start, size, count] =
            [number(file, 32, 8)?, number(file, 54, 2)?, number(file, 56, 2)?];
        for header in (0..count).map(|index| start + index * size) {
            match number(file, header, 4)? {
                PT_INTERP => elf.interpreter = true,
                PT_DYNAMIC => {
                    let [offset, bytes] =
                        [number(file, header + 8, 8)?, number(file, header + 32, 8)?];
                    let tags = (0..bytes / 16).map(|index| number(file, offset + index * 16, 8));
                    elf.needed += tags.filter(|tag| *tag == Some(DT_NEEDED)).count();
                }
                _ => {}
            }
        }
        let [start, size, count] =
            [number(file, 40, 8)?, number(file, 58, 2)?, number(file, 60, 2)?];
        for header in (0..count).map(|index| start + index * size) {
            elf.symbols |= number(file, header + 4, 4)? == SHT_SYMTAB;
        }
        Some(elf)
    }
}

fn number(file: &[u8], at: u64, bytes: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let bytes = file.get(at..at.checked_add(bytes)?)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}
