//! What the kernel finds: its environment, the list of files, page tables and a stack.

use memory::PAGE_SIZE;

use super::*;
use crate::handoff::{self, smap, words};
use crate::{Error, Mode};

/// Where the loader puts stack, page tables and descriptors, as userboot.so does.
const STACK: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const DIRECTORY: u64 = 0x4000;
const GDT: u64 = 0x5000;
/// Selectors there, and descriptors: code of 64 bits, data, a TSS of 68h bytes (Intel SDM vol. 3,
/// 3.4.5).
const CODE: u16 = 0x8;
const DATA: u16 = 0x10;
const TSS: u16 = 0x18;
const DESCRIPTORS: [u64; 5] = [0, 0x0020_9800_0000_0000, 0x0000_9200_0000_0000, 0x0000_8b00_0000_0067, 0];
/// Page table entry bits (Intel SDM vol. 3, 4.5): present, writable, 2 MiB page.
const TABLE: u64 = 3;
const LARGE: u64 = 0x83;

/// Kinds of records, each with its length and data of a multiple of 8 bytes behind it.
const MODINFO_END: u32 = 0x0;
const MODINFO_NAME: u32 = 0x1;
const MODINFO_TYPE: u32 = 0x2;
const MODINFO_ADDR: u32 = 0x3;
const MODINFO_SIZE: u32 = 0x4;
const MODINFO_ARGS: u32 = 0x6;
const MODINFO_METADATA: u32 = 0x8000;
const MODINFOMD_ENVP: u32 = 0x6;
const MODINFOMD_HOWTO: u32 = 0x7;
const MODINFOMD_KERNEND: u32 = 0x8;
const MODINFOMD_SMAP: u32 = 0x1001;
const MODINFOMD_MODULEP: u32 = 0x1006;
/// More than any environment has.
const ENVIRONMENT_MAX: u64 = 1 << 20;

/// Writes everything, and says how the kernel starts.
pub fn load(preload: &Preload, request: &Request) -> Result<Entry> {
    handoff::check_map(request.map)?;
    let memory = request.memory;
    let top = handoff::low_end(memory).min(MAPPED);
    for file in &preload.files {
        if file.end > top {
            let (need, have) = (file.end.div_ceil(1 << 20), top >> 20);
            return Err(file.image.error(format!("needs memory up to {need} MiB, the guest has {have} MiB")));
        }
    }
    for file in &preload.files {
        // Zeros between and behind the pieces; a file that is one piece has none.
        if file.pieces.iter().map(Piece::len).sum::<u64>() < file.size() {
            memory.fill(file.start, 0, file.size())?;
        }
        for piece in &file.pieces {
            match piece {
                Piece::File { at, offset, len } => file.image.place(memory, *offset, *len, *at)?,
                Piece::Made { at, bytes } => memory.write(*at, bytes)?,
            }
        }
    }
    let environment = environment(request.environment)?;
    let envp = page_up(preload.files.iter().map(|f| f.end).max().unwrap_or(0));
    let modulep = page_up(envp + environment.len() as u64);
    // The list's length doesn't depend on the address of its end.
    let len = list(preload, request, envp, modulep, 0).len() as u64;
    let kernend = page_up(modulep + len);
    if kernend > top {
        let (len, room) = (kernend - envp, top.saturating_sub(envp));
        return Err(Error::Room { what: "environment and module list of the kernel", len, room });
    }
    memory.write(envp, &environment)?;
    memory.write(modulep, &list(preload, request, envp, modulep, kernend))?;
    machine(memory, preload.entry, modulep, kernend)
}

/// `name=value` texts, and an empty one at the end.
fn environment(variables: &[(String, String)]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (name, value) in variables {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'=');
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
    }
    bytes.push(0);
    let len = bytes.len() as u64;
    if len > ENVIRONMENT_MAX {
        return Err(Error::Room { what: "the kernel's environment", len, room: ENVIRONMENT_MAX });
    }
    Ok(bytes)
}

/// The list of files: their names first, the kernel's facts with the kernel.
fn list(preload: &Preload, request: &Request, envp: u64, modulep: u64, kernend: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut add = |kind: u32, data: &[u8]| {
        bytes.extend_from_slice(&words(&[kind, data.len() as u32]));
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    let text = |text: &str| [text.as_bytes(), &[0]].concat();
    for (n, file) in preload.files.iter().enumerate() {
        add(MODINFO_NAME, &text(&file.name));
        add(MODINFO_TYPE, &text(&file.kind));
        if let Some(args) = &file.args {
            add(MODINFO_ARGS, &text(args));
        }
        add(MODINFO_ADDR, &file.start.to_le_bytes());
        add(MODINFO_SIZE, &file.size().to_le_bytes());
        for (kind, data) in &file.metadata {
            add(MODINFO_METADATA | kind, data);
        }
        if n == 0 {
            add(MODINFO_METADATA | MODINFOMD_HOWTO, &request.howto.to_le_bytes());
            add(MODINFO_METADATA | MODINFOMD_ENVP, &envp.to_le_bytes());
            add(MODINFO_METADATA | MODINFOMD_KERNEND, &kernend.to_le_bytes());
            add(MODINFO_METADATA | MODINFOMD_MODULEP, &modulep.to_le_bytes());
            add(MODINFO_METADATA | MODINFOMD_SMAP, &smap(request.map));
        }
    }
    add(MODINFO_END, &[]);
    bytes
}

/// Page tables that show the first GiB at every address, so that the kernel is where it was linked;
/// and a stack: return address, list, end.
fn machine(memory: &GuestMemory, entry: u64, modulep: u64, kernend: u64) -> Result<Entry> {
    let table =
        |entry: &dyn Fn(u64) -> u64| -> Vec<u8> { (0..512).map(entry).flat_map(u64::to_le_bytes).collect() };
    memory.write(PML4, &table(&|_| PDPT | TABLE))?;
    memory.write(PDPT, &table(&|_| DIRECTORY | TABLE))?;
    memory.write(DIRECTORY, &table(&|n| n << 21 | LARGE))?;
    let gdt: Vec<u8> = DESCRIPTORS.iter().flat_map(|d| d.to_le_bytes()).collect();
    memory.write(GDT, &gdt)?;
    memory.fill(STACK, 0, PAGE_SIZE)?;
    memory.write(STACK, &words(&[0, modulep as u32, kernend as u32]))?;
    Ok(Entry {
        mode: Mode::Long,
        rip: entry,
        rsi: 0,
        rbx: 0,
        rax: 0,
        rsp: STACK,
        cr3: PML4,
        gdt_base: GDT,
        gdt_limit: gdt.len() as u16 - 1,
        code: CODE,
        data: DATA,
        tss: TSS,
    })
}
