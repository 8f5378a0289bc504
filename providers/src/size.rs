//! Which instance types fit a pod, the cheapest first (providers.md 2.4).
//!
//! ```text
//!   explicit type ─▶ that one          none of it ─▶ the default type
//!   GPUs          ─▶ best fit with GPUs and whatever of CPU and memory was given
//!   CPU, memory   ─▶ best fit without GPUs, one of the two is enough
//! ```
//! The order is (price if every fitting type has one, GPUs, memory, vCPUs, position); upstream's
//! binary search over types sorted that way can miss a fit, so this is a plain scan. The texts of
//! [`SizeError`] are upstream's: its end-to-end tests match them.

use crate::InstanceType;

/// What a pod asks for. Zero and `None` ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SizeRequest {
    /// A type by name; wins over all else.
    pub instance_type: Option<String>,
    /// Virtual CPUs.
    pub vcpus: Option<u32>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
    /// GPUs.
    pub gpus: u32,
}

/// What an installation permits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SizeRules {
    /// The type of pods that ask for nothing; always permitted.
    pub default_type: String,
    /// Permitted types, a trailing `*` stands for the rest of a name (`m6a.*`). Empty permits the
    /// default alone.
    pub allowed: Vec<String>,
    /// The provider has no types and makes VMs of any size (libvirt).
    pub any_size: Option<AnySize>,
}

/// Sizes of a provider without types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnySize {
    /// Virtual CPUs of a pod that asks for none.
    pub vcpus: u32,
    /// Memory in MiB of a pod that asks for none.
    pub memory_mib: u64,
    /// Most virtual CPUs.
    pub vcpus_max: u32,
    /// Most memory in MiB.
    pub memory_mib_max: u64,
}

/// The types to try, best first, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Never empty. The first is the best fit, the rest the fallbacks.
    pub types: Vec<InstanceType>,
    /// One sentence for the log and `peerpodd status`.
    pub reason: String,
}

/// Why no type fits. All of them are `Kind::Invalid` to the caller: asking again cannot help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The named type is not in the list.
    #[error("requested instance type (\"{0}\") is not part of supported instance types list")]
    NotSupported(String),
    /// The named type is not the default, and there is no list.
    #[error(
        "requested instance type (\"{requested}\") is not default (\"{default}\") and supported \
         instance types list is empty"
    )]
    NotDefault {
        /// What the pod names.
        requested: String,
        /// What alone is permitted.
        default: String,
    },
    /// No type without GPUs is large enough.
    #[error(
        "failed to get instance type based on vCPU and memory annotations: no instance type found \
         for the given vcpus ({vcpus}) and memory ({memory_mib})"
    )]
    NoFit {
        /// Asked for; 0 is anything.
        vcpus: u32,
        /// Asked for, in MiB; 0 is anything.
        memory_mib: u64,
    },
    /// No type with GPUs is large enough.
    #[error(
        "failed to get instance type based on GPU, vCPU, and memory annotations: no instance type \
         found for the given GPUs ({gpus}), vCPUs ({vcpus}), and memory ({memory_mib})"
    )]
    NoGpuFit {
        /// Asked for.
        gpus: u32,
        /// Asked for; 0 is anything.
        vcpus: u32,
        /// Asked for, in MiB; 0 is anything.
        memory_mib: u64,
    },
    /// A type is named where there are none.
    #[error(
        "requested instance type (\"{0}\"): this provider has no instance types; ask for vCPUs and \
         memory instead"
    )]
    NoTypes(String),
    /// The pod asks for nothing, and there is no default.
    #[error("the pod asks for no instance type and none is the default")]
    NoDefault,
}

/// Picks the types for a request.
///
/// A type that is permitted by name but missing in the catalogue can be asked for by name (or be
/// the default) and is returned with sizes of 0; it never fits a request by size.
///
/// # Errors
/// [`SizeError`], with the texts upstream's users know.
pub fn choose(
    request: &SizeRequest,
    catalogue: &[InstanceType],
    rules: &SizeRules,
) -> Result<Choice, SizeError> {
    let named = request.instance_type.as_deref().filter(|n| !n.is_empty());
    if let Some(sizes) = &rules.any_size {
        return match named {
            Some(name) => Err(SizeError::NoTypes(name.to_owned())),
            None => sizes.choose(request),
        };
    }
    if let Some(name) = named {
        permit(name, rules)?;
        let reason = format!("{name}: named by the pod");
        return Ok(Choice { types: vec![by_name(name, catalogue)], reason });
    }
    let vcpus = request.vcpus.unwrap_or(0);
    let memory_mib = request.memory_mib.unwrap_or(0);
    if request.gpus == 0 && vcpus == 0 && memory_mib == 0 {
        return default(catalogue, rules);
    }
    let wanted = Wanted { gpus: request.gpus, vcpus, memory_mib };
    let permitted = catalogue.iter().filter(|t| is_permitted(&t.name, rules));
    let fitting: Vec<&InstanceType> = permitted.filter(|t| wanted.fits(t)).collect();
    let by_price = fitting.iter().all(|t| t.price.is_some());
    let types = sorted(fitting, by_price);
    match types.first() {
        Some(best) => Ok(Choice { reason: wanted.reason(best, types.len(), by_price), types }),
        None => Err(wanted.error()),
    }
}

/// Permitted names and patterns that no type of the catalogue has: a mistake in the settings.
pub fn unknown<'a>(rules: &'a SizeRules, catalogue: &[InstanceType]) -> Vec<&'a str> {
    let names = rules.allowed.iter().chain([&rules.default_type]).map(String::as_str);
    let known = |pattern: &str| catalogue.iter().any(|t| matches(pattern, &t.name));
    names.filter(|n| !n.is_empty() && !known(n)).collect()
}

impl AnySize {
    fn choose(&self, request: &SizeRequest) -> Result<Choice, SizeError> {
        let asked = |n: Option<u32>| n.filter(|n| *n > 0);
        let vcpus = asked(request.vcpus).unwrap_or(self.vcpus);
        let memory_mib = request.memory_mib.filter(|m| *m > 0).unwrap_or(self.memory_mib);
        if request.gpus > 0 {
            return Err(SizeError::NoGpuFit { gpus: request.gpus, vcpus, memory_mib });
        }
        if vcpus > self.vcpus_max || memory_mib > self.memory_mib_max {
            return Err(SizeError::NoFit { vcpus, memory_mib });
        }
        let name = AnySize::name(vcpus, memory_mib);
        let reason =
            format!("{name}: {vcpus} vCPUs and {memory_mib} MiB, as the pod asks or by default");
        let t = InstanceType { name, vcpus, memory_mib, gpus: 0, price: None };
        Ok(Choice { types: vec![t], reason })
    }

    /// The name under which such a size stands in a candidate.
    pub fn name(vcpus: u32, memory_mib: u64) -> String {
        format!("{vcpus}x{memory_mib}")
    }

    /// Virtual CPUs and MiB of a candidate's size; `None` if it was not made by [`AnySize::name`].
    pub fn parse(name: &str) -> Option<(u32, u64)> {
        let (vcpus, memory_mib) = name.split_once('x')?;
        Some((vcpus.parse().ok()?, memory_mib.parse().ok()?))
    }
}

/// A size that a type must have; 0 is anything.
struct Wanted {
    gpus: u32,
    vcpus: u32,
    memory_mib: u64,
}

impl Wanted {
    /// A pod that asks for no GPU gets no type with one: they are dear and scarce.
    fn fits(&self, t: &InstanceType) -> bool {
        let gpus = if self.gpus == 0 { t.gpus == 0 } else { t.gpus >= self.gpus };
        gpus && t.vcpus >= self.vcpus && t.memory_mib >= self.memory_mib
    }

    fn reason(&self, best: &InstanceType, fitting: usize, by_price: bool) -> String {
        let Self { gpus, vcpus, memory_mib } = self;
        let order = if by_price { "cheapest" } else { "smallest" };
        let name = &best.name;
        format!(
            "{name}: the {order} of {fitting} that fit {gpus} GPUs, {vcpus} vCPUs, {memory_mib} MiB"
        )
    }

    fn error(self) -> SizeError {
        let Self { gpus, vcpus, memory_mib } = self;
        match gpus {
            0 => SizeError::NoFit { vcpus, memory_mib },
            _ => SizeError::NoGpuFit { gpus, vcpus, memory_mib },
        }
    }
}

fn default(catalogue: &[InstanceType], rules: &SizeRules) -> Result<Choice, SizeError> {
    let name = rules.default_type.as_str();
    if name.is_empty() {
        return Err(SizeError::NoDefault);
    }
    let reason = format!("{name}: the default, the pod asks for no size");
    Ok(Choice { types: vec![by_name(name, catalogue)], reason })
}

/// Sorting is stable, so equal types keep their position.
fn sorted(mut fitting: Vec<&InstanceType>, by_price: bool) -> Vec<InstanceType> {
    fitting.sort_by_key(|t| {
        let price = if by_price { t.price } else { None };
        (price, t.gpus, t.memory_mib, t.vcpus)
    });
    fitting.into_iter().cloned().collect()
}

fn permit(name: &str, rules: &SizeRules) -> Result<(), SizeError> {
    if is_permitted(name, rules) {
        return Ok(());
    }
    let requested = name.to_owned();
    if rules.allowed.is_empty() {
        return Err(SizeError::NotDefault { requested, default: rules.default_type.clone() });
    }
    Err(SizeError::NotSupported(requested))
}

fn is_permitted(name: &str, rules: &SizeRules) -> bool {
    name == rules.default_type || rules.allowed.iter().any(|pattern| matches(pattern, name))
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

fn by_name(name: &str, catalogue: &[InstanceType]) -> InstanceType {
    let known = catalogue.iter().find(|t| t.name == name).cloned();
    known.unwrap_or_else(|| InstanceType {
        name: name.to_owned(),
        vcpus: 0,
        memory_mib: 0,
        gpus: 0,
        price: None,
    })
}

#[cfg(test)]
mod tests;
