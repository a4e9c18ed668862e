//! The engine against this host's /dev/kvm.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::guests::{self, rig::Rig};
use crate::{Stop, reg};

/// The engine, or why there is none on this host.
fn engine(steppers: Option<StepperFactory>) -> Option<KvmEngine> {
    match KvmEngine::new(steppers) {
        Ok(engine) => Some(engine),
        Err(error) => {
            eprintln!("left out: {error}");
            None
        }
    }
}

macro_rules! scenarios {
    ($($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                if let Some(engine) = engine(None) {
                    guests::scenarios::$test(&engine);
                }
            }
        )*

        #[test]
        fn all_scenarios_are_tests_here() {
            assert_eq!([$(stringify!($test)),*].len(), guests::ALL.len());
        }
    };
}

scenarios!(port_io memory_io msi_by_signal msi_by_event doorbell second_vcpu apic_timer pic_interrupt level_eoi
    state_round_trip state_moves kick
    nmi_and_statistics power_event triple_fault halted_for_good cpuid unknown_msr_strict
    unknown_msr_ignored unclaimed_port);

#[test]
fn the_probe_guest_runs() {
    if let Some(engine) = engine(None) {
        probe::probe(&engine).unwrap();
    }
}

/// mov ecx,0F0F0F001h; popcnt eax,ecx; mov [5000],eax; mov dx,5F4h; out dx,al; hlt.
const POPCNT: &[u8] = &[
    0xb9, 0x01, 0xf0, 0xf0, 0xf0, 0xf3, 0x0f, 0xb8, 0xc1, 0xa3, 0x00, 0x50, 0x00, 0x00, 0x66, 0xba, 0xf4,
    0x05, 0xee, 0xf4,
];

/// Executes POPCNT EAX,ECX and nothing else.
struct Popcnt(Arc<AtomicU32>);

impl Stepper for Popcnt {
    fn step(
        &mut self,
        state: &mut VcpuState,
        services: &VmServices,
    ) -> std::result::Result<(), &'static str> {
        let mut bytes = [0; 4];
        services.memory.read(state.rip, &mut bytes).map_err(|_| "no code")?;
        if bytes != [0xf3, 0x0f, 0xb8, 0xc1] {
            return Err("another instruction");
        }
        self.0.fetch_add(1, Ordering::SeqCst);
        state.gpr[reg::RAX] = u64::from((state.gpr[reg::RCX] as u32).count_ones());
        state.rip += 4;
        Ok(())
    }
}

#[test]
fn what_kvm_cannot_emulate_is_stepped() {
    let steps = Arc::new(AtomicU32::new(0));
    let counter = steps.clone();
    let steppers: StepperFactory = Arc::new(move |_, _, _| Ok(Box::new(Popcnt(counter.clone()))));
    let Some(engine) = engine(Some(steppers)) else { return };
    let rig = Rig::new(&engine, 1, POPCNT);
    assert_eq!(rig.run(&engine), Stop::Stopped);
    assert_eq!(rig.result(0), 13);
    eprintln!("KVM left {} instruction(s) to the stepper", steps.load(Ordering::SeqCst));
}

#[test]
fn vcpus_exist_once_and_only_those_of_the_vm() {
    let Some(engine) = engine(None) else { return };
    let rig = Rig::new(&engine, 2, &[]);
    let vm = rig.vm(&engine);
    let _first = vm.new_vcpu(0).unwrap();
    assert!(vm.new_vcpu(0).is_err());
    assert!(vm.new_vcpu(2).is_err());
}

#[test]
fn x2apic_mode_can_be_there_from_the_start() {
    let Some(engine) = engine(None) else { return };
    let mut rig = Rig::new(&engine, 2, &[]);
    rig.config.x2apic = true;
    let vm = rig.vm(&engine);
    let state = vm.new_vcpu(1).unwrap().state().unwrap();
    assert_eq!((state.apic_base, state.apic.regs[2]), (0xfee0_0c00, 1));
}
