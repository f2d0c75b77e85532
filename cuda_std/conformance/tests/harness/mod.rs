//! A device with the conformance module loaded: typed buffers in, a launch that must be clean, typed buffers out.
//!
//! Every launch runs under all checkers of the emulator; a finding fails the test.

// Each test file uses its part of this.
#![allow(dead_code)]

use std::sync::OnceLock;

use psa_codegen::{DeviceLimits, In, InOut, Launch, Region};
use psa_cuda_std_conformance::PTX;
use ptx_emulator::{Arg, Device, LaunchConfig, Module, Options};

/// A scalar that buffers hold.
pub trait Pod: Copy {
    fn to_bytes(self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! pod {
    ($($ty:ty)*) => {$(
        impl Pod for $ty {
            fn to_bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                <$ty>::from_le_bytes(bytes.try_into().expect("a whole element"))
            }
        }
    )*};
}

pod!(u16 u32 u64 f32 f64);

pub struct Gpu {
    device: Device,
}

fn module() -> &'static Module {
    static MODULE: OnceLock<Module> = OnceLock::new();
    MODULE.get_or_init(|| Module::parse(PTX).expect("the conformance PTX parses"))
}

impl Gpu {
    pub fn new() -> Self {
        Self { device: Device::new(Options::default()) }
    }

    pub fn input<T: Pod>(&mut self, values: &[T]) -> In<T> {
        self.input_mut(values).as_in()
    }

    pub fn input_mut<T: Pod>(&mut self, values: &[T]) -> InOut<T> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_bytes()).collect();
        let address = self.device.alloc_init(&bytes, "input").expect("room").0;
        // SAFETY: just allocated, of this length, and never freed.
        unsafe { Region::new(address, bytes.len() as u64) }.in_out()
    }

    /// A buffer that counts as never written.
    pub fn output<T: Pod>(&mut self, elements: usize) -> InOut<T> {
        let bytes = (elements * size_of::<T>()) as u64;
        let address = self.device.alloc(bytes, "output").expect("room").0;
        // SAFETY: just allocated, of this length, and never freed.
        unsafe { Region::new(address, bytes) }.in_out()
    }

    pub fn read<T: Pod>(&self, from: InOut<T>, elements: usize) -> Vec<T> {
        let mut bytes = vec![0; elements * size_of::<T>()];
        self.device
            .copy_from(ptx_emulator::DevicePtr(from.region().address()), &mut bytes)
            .expect("a live buffer");
        bytes.chunks(size_of::<T>()).map(T::from_bytes).collect()
    }

    /// Runs the launch; a finding of any checker fails the test.
    pub fn run(&mut self, launch: &Launch) {
        launch
            .check(&DeviceLimits::of_sm(self.device.options().sm))
            .expect("a launch that keeps its contract");
        let config =
            LaunchConfig { grid: launch.grid, block: launch.block, shared_bytes: launch.shared_bytes };
        let args: Vec<Arg> = launch.args.iter().map(|arg| Arg::Bytes(arg.bytes())).collect();
        let report = self
            .device
            .launch(module(), launch.kernel.name, config, &args)
            .expect("a launch that can be run");
        let findings: String = report.findings.iter().map(|finding| format!("{finding}\n")).collect();
        assert!(report.is_clean(), "{}: {findings}completed: {}", launch.kernel.name, report.completed);
    }
}
