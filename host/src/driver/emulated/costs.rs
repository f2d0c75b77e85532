//! The declared costs of a modelled device: what a launch, a copy, a wait of the host take. Nothing here was measured by
//! this project; times made of it are a model and say so.

/// Costs of a device and its link to the host. Times in microseconds, bandwidths in bytes a microsecond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// Name of the model.
    pub name: &'static str,
    /// Bandwidth of device memory.
    pub memory: f64,
    /// Bandwidth of the link to host memory, each way.
    pub link: f64,
    /// Least time of a kernel, from the end of the one before to its own end.
    pub kernel: f64,
    /// Time of one copy on the copy engine besides its bytes.
    pub copy: f64,
    /// Host's time to queue a launch or a copy.
    pub enqueue: f64,
    /// Host's time to queue a record, a wait or a signal.
    pub enqueue_event: f64,
    /// From the end of a stream until a host that waited for it goes on.
    pub synchronize: f64,
    /// Host's time to look at a flag, and the time until a flag written by the device shows.
    pub peek: f64,
    /// Bytes that a byte stands for: an emulated cache is a scale model of a larger one.
    pub scale: f64,
}

impl Costs {
    /// An H100 SXM on PCIe 5 x16. Data sheet: 3.35 TB/s, 64 GB/s each way; of these 84 % are assumed to be reached, as is
    /// usual for streams of reads. Launches, copies and waits: the usual figures for a CUDA 12 driver, assumed.
    pub const H100: Costs = Costs {
        name: "h100",
        memory: 2.8e6,
        link: 54e3,
        kernel: 2.5,
        copy: 1.5,
        enqueue: 2.0,
        enqueue_event: 0.5,
        synchronize: 10.0,
        peek: 1.0,
        scale: 1.0,
    };

    /// The same with the link of a GH200: 450 GB/s each way by data sheet, 84 % of it assumed.
    pub const GH200: Costs = Costs { name: "gh200", link: 378e3, ..Costs::H100 };

    /// The same for a cache `scale` times as large.
    pub fn scaled(self, scale: f64) -> Costs {
        Costs { scale, ..self }
    }

    /// Time of a kernel that touches so many distinct bytes of device memory and of pinned memory.
    pub fn of_kernel(&self, memory: u64, link: u64) -> f64 {
        let bytes = |n: u64| n as f64 * self.scale;
        self.kernel.max(bytes(memory) / self.memory).max(bytes(link) / self.link)
    }

    /// Time of a copy.
    pub fn of_copy(&self, bytes: u64, over_link: bool) -> f64 {
        self.copy + bytes as f64 * self.scale / if over_link { self.link } else { self.memory / 2.0 }
    }
}
