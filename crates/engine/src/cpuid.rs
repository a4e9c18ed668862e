//! What CPUID answers: one table for both engines.

/// Sockets, cores and threads of the guest's processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

/// One answer of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// All answers of CPUID for one VM.
#[derive(Clone, Debug)]
pub struct CpuidTable {
    /// The guest's topology.
    pub topology: Topology,
    /// (leaf, sub-leaf, answer); a leaf without sub-leaves has sub-leaf 0 only.
    pub leaves: Vec<(u32, u32, CpuidLeaf)>,
}
