//! The kernel object as it goes into the agent: without what depends on the machine that built it.
//!
//! The compiler's debug information is dropped (BTF, which the kernel reads, is a thing of its own and stays): it is
//! four fifths of the file. Symbols get their plain Rust names, because a mangled one holds a hash of the folder that
//! the crate lay in. What is left is the same, byte for byte, wherever it was built.

use anyhow::{Context, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Names of the sections to drop begin so; the second are the relocations of the first.
const DEBUG: [&[u8]; 2] = [b".debug_", b".rel.debug_"];

/// The same programs in fewer bytes.
pub(crate) fn slim(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the linker's output isn't an ELF object")?;
    for section in &mut builder.sections {
        section.delete = DEBUG.iter().any(|prefix| section.name.as_slice().starts_with(prefix));
    }
    builder.delete_orphans();
    for symbol in &mut builder.symbols {
        let name = std::str::from_utf8(symbol.name.as_slice()).context("a symbol's name isn't text")?;
        if let Ok(plain) = rustc_demangle::try_demangle(name) {
            // The alternate form leaves the hash out.
            symbol.name = format!("{plain:#}").into_bytes().into();
        }
    }
    // The linker keeps the names of sections and symbols in one table; this writer wants two.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut bytes = Vec::new();
    builder.write(&mut bytes).context("can't write the object")?;
    Ok(bytes)
}
