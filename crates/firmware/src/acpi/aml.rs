//! Small additions to the AML generator: code that is already encoded, and the resource
//! descriptors and operators that it lacks.

use acpi_tables::aml::{Device, EISAName, IO, Name, Path, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

/// Encoded AML. Children are encoded as soon as they are made, so nothing has to outlive them.
#[derive(Clone, Default)]
pub struct Code(pub Vec<u8>);

impl Aml for Code {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

pub fn code(aml: &dyn Aml) -> Code {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    Code(bytes)
}

fn refs(parts: &[Code]) -> Vec<&dyn Aml> {
    parts.iter().map(|p| p as &dyn Aml).collect()
}

pub fn name(path: &str, value: &dyn Aml) -> Code {
    code(&Name::new(Path::new(path), value))
}

pub fn device(path: &str, parts: &[Code]) -> Code {
    code(&Device::new(Path::new(path), refs(parts)))
}

pub fn method(path: &str, args: u8, serialized: bool, parts: &[Code]) -> Code {
    code(&acpi_tables::aml::Method::new(Path::new(path), args, serialized, refs(parts)))
}

/// `_HID` with a plug-and-play id such as `PNP0A03`.
pub fn hid(id: &str) -> Code {
    name("_HID", &EISAName::new(id))
}

pub fn resources(parts: &[Code]) -> Code {
    code(&ResourceTemplate::new(refs(parts)))
}

/// `_CRS` of fixed resources.
pub fn crs(parts: &[Code]) -> Code {
    name("_CRS", &resources(parts))
}

/// `len` ports from `first`.
pub fn ports(first: u16, len: u8) -> Code {
    code(&IO::new(first, first, 1, len))
}

/// An edge-triggered ISA interrupt: small resource item 4 of 2 bytes (ACPI 6.4, 6.4.2.1).
pub fn isa_irq(irq: u8) -> Code {
    let [low, high] = (1u16 << (irq & 15)).to_le_bytes();
    Code(vec![0x22, low, high])
}

/// A shareable, level-triggered, active-low interrupt, one of those in `mask`: the same item with
/// its 3-byte form (bit 0 clear: level, bit 3: low, bit 4: shared).
pub fn link_irq(mask: u16) -> Code {
    let [low, high] = mask.to_le_bytes();
    Code(vec![0x23, low, high, 0x18])
}

/// CreateWordField: `field` names the 16 bits at byte `offset` of the buffer `source`.
pub fn create_word_field(source: &dyn Aml, offset: u8, field: &str) -> Code {
    let mut bytes = vec![0x8b];
    source.to_aml_bytes(&mut bytes);
    offset.to_aml_bytes(&mut bytes);
    Path::new(field).to_aml_bytes(&mut bytes);
    Code(bytes)
}

/// FindSetRightBit: 1-based place of the lowest set bit of `source`, or 0, into `target`.
pub fn find_set_right_bit(source: &dyn Aml, target: &dyn Aml) -> Code {
    let mut bytes = vec![0x82];
    source.to_aml_bytes(&mut bytes);
    target.to_aml_bytes(&mut bytes);
    Code(bytes)
}
