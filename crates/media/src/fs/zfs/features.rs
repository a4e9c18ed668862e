//! Feature flags: those that change what a reader must know.

/// The features that may be in `features_for_read` of a pool that we read. Those that only a writer must know
/// are in a list of their own, which doesn't matter here.
const KNOWN: &[&str] = &[
    "org.illumos:lz4_compress",
    "com.joyent:multi_vdev_crash_dump",
    "com.delphix:hole_birth",
    "com.delphix:extensible_dataset",
    "com.delphix:embedded_data",
    "com.delphix:bookmark_written",
    "com.delphix:device_removal",
    "com.delphix:redaction_bookmarks",
    "com.delphix:redacted_datasets",
    "com.delphix:redaction_list_spill",
    "com.delphix:head_errlog",
    "com.datto:bookmark_v2",
    "com.datto:encryption",
    "com.klarasystems:vdev_zaps_v2",
    "org.open-zfs:large_blocks",
    "org.zfsonlinux:large_dnode",
    "org.zfsonlinux:longname",
    "org.illumos:sha512",
    "org.illumos:skein",
    "org.illumos:edonr",
    "org.openzfs:blake3",
    "org.freebsd:zstd_compress",
];

/// Whether we can read a pool with this feature in use.
pub fn known(name: &str) -> bool {
    KNOWN.contains(&name)
}
