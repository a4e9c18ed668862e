//! Which engine runs the VM.

use std::fmt;
use std::str::FromStr;

use crate::kvm::KvmEngine;
use crate::{Error, Result};

/// What the user asks for (`engine=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// KVM where it is hardware virtualization and works, else the software engine.
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// The software engine.
    Soft,
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "soft" => Ok(Self::Soft),
            _ => Err(Error::Unsupported(format!("engine={text}: expected auto, kvm or soft"))),
        }
    }
}

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`KvmEngine`].
    Kvm,
    /// The recompiler.
    Soft,
}

/// An engine and why. Its text is the line to print: `engine: soft (…)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The engine.
    pub kind: Kind,
    /// Why this one.
    pub reason: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            Kind::Kvm => "kvm",
            Kind::Soft => "soft",
        };
        write!(f, "engine: {name} ({})", self.reason)
    }
}

/// Chooses the engine. `Auto` takes KVM only where the host's processor has vmx or svm: a KVM that
/// emulates by other means runs stock kernels badly or not at all.
pub fn choose(wanted: Wanted) -> Result<Choice> {
    decide(wanted, virtualization(), || crate::kvm::probe(&KvmEngine::new(None)?))
}

/// The hardware virtualization of the host's processor, `vmx` or `svm`: CPUID.1:ECX.VMX or CPUID.80000001:ECX.SVM.
pub fn virtualization() -> Option<&'static str> {
    use std::arch::x86_64::__cpuid;
    if __cpuid(1).ecx >> 5 & 1 != 0 {
        Some("vmx")
    } else if __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx >> 2 & 1 != 0 {
        Some("svm")
    } else {
        None
    }
}

fn decide(wanted: Wanted, cpu: Option<&str>, probe: impl FnOnce() -> Result<()>) -> Result<Choice> {
    let soft = |reason: String| Ok(Choice { kind: Kind::Soft, reason });
    let kvm = |reason: String| Ok(Choice { kind: Kind::Kvm, reason });
    match (wanted, cpu) {
        (Wanted::Soft, _) => soft("engine=soft".into()),
        (Wanted::Kvm, _) => match probe() {
            Ok(()) => kvm("engine=kvm".into()),
            Err(error) => Err(Error::Unsupported(format!("engine=kvm: {}", plain(&error)))),
        },
        (Wanted::Auto, None) => soft("this host's CPU offers no vmx or svm".into()),
        (Wanted::Auto, Some(name)) => match probe() {
            Ok(()) => kvm(format!("this host's CPU offers {name}")),
            Err(error) => soft(plain(&error)),
        },
    }
}

/// The error without the number that the standard library adds.
fn plain(error: &Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Result<()> {
        let source = std::io::Error::from_raw_os_error(libc::EACCES);
        Err(Error::System { what: "/dev/kvm", source })
    }

    fn line(wanted: Wanted, cpu: Option<&str>, works: bool) -> String {
        let probe = || if works { Ok(()) } else { denied() };
        decide(wanted, cpu, probe).map_or_else(|e| format!("error: {e}"), |c| c.to_string())
    }

    #[test]
    fn auto_takes_kvm_only_where_it_is_hardware_and_works() {
        use Wanted::{Auto, Kvm, Soft};
        let denied = "/dev/kvm: Permission denied";
        assert_eq!(line(Auto, Some("vmx"), true), "engine: kvm (this host's CPU offers vmx)");
        assert_eq!(line(Auto, Some("svm"), false), format!("engine: soft ({denied})"));
        assert_eq!(line(Auto, None, true), "engine: soft (this host's CPU offers no vmx or svm)");
        assert_eq!(line(Kvm, None, true), "engine: kvm (engine=kvm)");
        assert_eq!(line(Kvm, Some("vmx"), false), format!("error: engine=kvm: {denied}"));
        assert_eq!(line(Soft, Some("vmx"), true), "engine: soft (engine=soft)");
    }

    #[test]
    fn the_key_has_three_values() {
        assert_eq!("auto".parse::<Wanted>().unwrap(), Wanted::Auto);
        assert_eq!("kvm".parse::<Wanted>().unwrap(), Wanted::Kvm);
        let error = "tcg".parse::<Wanted>().unwrap_err().to_string();
        assert_eq!(error, "engine=tcg: expected auto, kvm or soft");
    }

    #[test]
    fn this_host_gets_an_engine() {
        assert!(choose(Wanted::Auto).unwrap().to_string().starts_with("engine: "));
    }
}
