//! LVM2: linear and striped volumes, mirrors, RAID 0, 1, 4, 5, 6 and 10.

use std::collections::HashMap;

use super::table::{Candidate, Failure, Found};
use crate::SourceRef;

mod label;
#[cfg(test)]
mod tests;
mod text;
mod volume;

use text::Section;
use volume::Group;

const KIND: &str = "lvm";
/// Most volume groups and most volumes of one.
const MAX_GROUPS: usize = 256;
const MAX_VOLUMES: usize = 4096;

/// The newest metadata of a group.
struct Metadata {
    name: String,
    id: String,
    sequence: u64,
    body: Section,
}

/// Logical volumes of all volume groups.
pub fn scan(candidates: &[Candidate]) -> Vec<Found> {
    let mut physical: HashMap<String, SourceRef> = HashMap::new();
    let mut groups: Vec<Metadata> = Vec::new();
    // All physical volumes of a group hold the same text.
    let mut seen: Vec<(usize, u32)> = Vec::new();
    for candidate in candidates {
        let Ok(Some(label)) = label::read(&candidate.source) else { continue };
        for text in label.texts(&candidate.source) {
            let print = (text.len(), label::crc(&text));
            if seen.contains(&print) {
                continue;
            }
            seen.push(print);
            if let Some(group) = understand(&text) {
                keep(&mut groups, group);
            }
        }
        physical.entry(label.uuid).or_insert_with(|| candidate.source.clone());
    }
    groups.iter().flat_map(|group| volumes(group, &physical)).collect()
}

fn understand(text: &[u8]) -> Option<Metadata> {
    let mut parsed = text::parse(text).ok()?;
    // The group's section stands before keys about who wrote the text.
    let at = parsed.0.iter().position(|(_, value)| matches!(value, text::Value::Section(_)))?;
    let (name, text::Value::Section(body)) = parsed.0.swap_remove(at) else { return None };
    let id = body.text("id")?.to_owned();
    Some(Metadata { name, id, sequence: body.number("seqno")?, body })
}

fn keep(groups: &mut Vec<Metadata>, group: Metadata) {
    match groups.iter().position(|known| known.id == group.id).and_then(|at| groups.get_mut(at)) {
        Some(known) => {
            if known.sequence < group.sequence {
                *known = group;
            }
        }
        None => {
            if groups.len() < MAX_GROUPS {
                groups.push(group);
            }
        }
    }
}

fn volumes(metadata: &Metadata, physical: &HashMap<String, SourceRef>) -> Vec<Found> {
    let mut group = match Group::new(&metadata.name, &metadata.body, physical) {
        Ok(group) => group,
        Err(failure) => return vec![found(metadata, "", "", Err(failure))],
    };
    let Some(all) = metadata.body.section("logical_volumes") else { return Vec::new() };
    let visible: Vec<_> =
        all.sections().filter(|(name, lv)| group.is_visible(name, lv)).take(MAX_VOLUMES).collect();
    visible
        .into_iter()
        .map(|(name, lv)| found(metadata, name, lv.text("id").unwrap_or_default(), group.volume(name)))
        .collect()
}

fn found(metadata: &Metadata, lv: &str, id: &str, source: Result<SourceRef, Failure>) -> Found {
    // As device mapper names them: a dash separates group and volume, those within are doubled.
    let plain = format!("{}-{}", metadata.name.replace('-', "--"), lv.replace('-', "--"));
    let aliases = vec![format!("lvmid/{}/{id}", metadata.id), plain.clone()];
    Found { name: format!("lvm/{plain}"), aliases, source }
}
