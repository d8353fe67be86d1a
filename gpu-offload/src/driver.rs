//! Is there a CUDA driver, and which devices does it have?
//!
//! The same binary runs with and without a GPU, so the driver is loaded at run time. The binding looks up each function
//! when it is first called, and panics where the library or the function is missing; even printing one of its errors
//! calls the driver. So nothing here calls it before the library and every function used are known to be there, and
//! errors are told by their number and the driver's own name for it.

use std::fmt::{self, Display, Formatter};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute, CUresult};

/// Every driver function that [`DriverStatus::probe`] reaches, as the library exports it.
const FUNCTIONS: [&[u8]; 8] = [
    b"cuInit\0",
    b"cuDriverGetVersion\0",
    b"cuDeviceGetCount\0",
    b"cuDeviceGet\0",
    b"cuDeviceGetName\0",
    b"cuDeviceGetAttribute\0",
    b"cuDeviceTotalMem_v2\0",
    b"cuGetErrorName\0",
];

/// What the CUDA driver says of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverStatus {
    /// No driver that works: everything runs on the CPU.
    Absent {
        /// What is missing, and what would help.
        why: String,
    },
    /// A driver, and the devices that it shows to this process.
    Present {
        /// Newest CUDA version that it supports: major, minor.
        version: [u32; 2],
        /// In the driver's order.
        devices: Vec<Device>,
    },
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The product's name.
    pub name: String,
    /// Major, minor: 12.0 is a Blackwell workstation card.
    pub compute_capability: [u32; 2],
    /// All of its memory.
    pub memory_bytes: u64,
}

impl DriverStatus {
    /// Asks the driver. Creates no context and takes no device memory; never panics or prints where there is no driver.
    pub fn probe() -> Self {
        Self::ask().unwrap_or_else(|why| Self::Absent { why })
    }

    fn ask() -> Result<Self, String> {
        check_library()?;
        let version = version()?;
        let count = match result::init() {
            Ok(()) => result::device::get_count().map_err(|error| describe("cuDeviceGetCount", error))?,
            // A driver whose devices are gone, or hidden by CUDA_VISIBLE_DEVICES.
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
            Err(error) => return Err(describe("cuInit", error)),
        };
        Ok(Self::Present { version, devices: (0..count).map(device).collect::<Result<_, _>>()? })
    }
}

/// Makes sure that no call below can panic.
fn check_library() -> Result<(), String> {
    // SAFETY: loading runs the library's initialisers: it is the system's own driver, or none.
    if !unsafe { sys::is_culib_present() } {
        return Err("libcuda.so was not found; a GPU needs NVIDIA's driver installed".to_owned());
    }
    // SAFETY: as above; it is the library that was just found, kept loaded.
    let library = unsafe { sys::culib() };
    for function in FUNCTIONS {
        // SAFETY: the symbol is only looked up, as a plain pointer, and neither called nor read.
        if unsafe { library.get::<*const ()>(function) }.is_err() {
            let name = String::from_utf8_lossy(function.strip_suffix(b"\0").unwrap_or(function));
            return Err(format!("libcuda.so has no {name}; reinstall NVIDIA's driver"));
        }
    }
    Ok(())
}

fn version() -> Result<[u32; 2], String> {
    let mut version = 0;
    // SAFETY: the driver writes one integer to the pointer, which is to one of ours.
    let outcome = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    outcome.result().map_err(|error| describe("cuDriverGetVersion", error))?;
    // 12080 is 12.8.
    let version = version.unsigned_abs();
    Ok([version / 1000, version % 1000 / 10])
}

fn device(ordinal: i32) -> Result<Device, String> {
    let device = result::device::get(ordinal).map_err(|error| describe("cuDeviceGet", error))?;
    // SAFETY: the device comes from `device::get`.
    let memory = unsafe { result::device::total_mem(device) };
    Ok(Device {
        name: result::device::get_name(device).map_err(|error| describe("cuDeviceGetName", error))?,
        compute_capability: [
            attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ],
        memory_bytes: memory.map_err(|error| describe("cuDeviceTotalMem", error))? as u64,
    })
}

fn attribute(device: CUdevice, attribute: CUdevice_attribute) -> Result<u32, String> {
    // SAFETY: the device comes from `device::get`.
    let value = unsafe { result::device::get_attribute(device, attribute) };
    value.map(i32::unsigned_abs).map_err(|error| describe("cuDeviceGetAttribute", error))
}

fn describe(call: &str, error: DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|_| "an error without a name".to_owned());
    format!("{call} answered {name} ({}); `nvidia-smi` may say more", error.0 as u32)
}

impl Display for DriverStatus {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { why } => write!(f, "no CUDA driver: {why}"),
            Self::Present { version: [major, minor], devices } => {
                write!(f, "CUDA driver {major}.{minor}")?;
                if devices.is_empty() {
                    f.write_str(", no device")?;
                }
                devices.iter().try_for_each(|device| write!(f, "; {device}"))
            }
        }
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { name, compute_capability: [major, minor], memory_bytes } = self;
        let gib = *memory_bytes as f64 / f64::from(1 << 30);
        write!(f, "{name} (compute capability {major}.{minor}, {gib:.1} GiB)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_device_file_the_probe_finds_no_device_and_says_why() {
        let status = DriverStatus::probe();
        assert_eq!(status, DriverStatus::probe(), "asking twice changes nothing");
        // Linux, and Windows' Linux subsystem.
        let device_file = ["/dev/nvidiactl", "/dev/dxg"].iter().any(|path| std::path::Path::new(path).exists());
        match &status {
            DriverStatus::Absent { why } => assert!(!why.is_empty()),
            DriverStatus::Present { version, devices } => {
                assert!(device_file || devices.is_empty(), "{status}");
                assert!(version[0] >= 11, "{status}");
                assert!(devices.iter().all(|device| !device.name.is_empty() && device.memory_bytes > 0), "{status}");
            }
        }
    }

    #[test]
    fn each_status_is_one_line_to_read() {
        let absent = DriverStatus::Absent { why: "libcuda.so was not found".to_owned() };
        assert_eq!(absent.to_string(), "no CUDA driver: libcuda.so was not found");

        let mut devices = vec![];
        let none = DriverStatus::Present { version: [12, 8], devices: devices.clone() };
        assert_eq!(none.to_string(), "CUDA driver 12.8, no device");

        let name = "NVIDIA RTX PRO 6000".to_owned();
        devices.push(Device { name, compute_capability: [12, 0], memory_bytes: 96 << 30 });
        let one = DriverStatus::Present { version: [13, 0], devices };
        assert_eq!(one.to_string(), "CUDA driver 13.0; NVIDIA RTX PRO 6000 (compute capability 12.0, 96.0 GiB)");
    }
}
