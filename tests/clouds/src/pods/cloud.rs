//! The clouds that pods run on here: one entry each. A further cloud is a further entry.

use super::metadata::Flavour;

/// A cloud with its double.
#[derive(Debug)]
pub struct Cloud {
    /// As `CLOUD_PROVIDER` has it.
    pub name: &'static str,
    /// Its double, below `double/`.
    pub script: &'static str,
    /// How user data are read in its VMs.
    pub flavour: Flavour,
    /// `peer-pods-cm` as the users' guide prints it, in its order, with the double's ids for what it has
    /// between angle brackets and for the image, which it leaves empty until there is one.
    pub guide: &'static [(&'static str, &'static str)],
    /// `peer-pods-secret`.
    pub secret: &'static [(&'static str, &'static str)],
    /// What of it the double makes up: it is told a file with `--key`, whose text is the value.
    pub key: Option<&'static str>,
    /// What the guide knows nothing of: without this two pods' VMs could not be told from one another's
    /// attempts, or a test would wait for budgets.
    pub beyond: &'static [(&'static str, &'static str)],
    /// Keys that say where the double is.
    pub endpoints: &'static [&'static str],
    /// Type of a VM for which nothing is asked.
    pub default_type: &'static str,
    /// Takes the image away, in the double's words (JSON).
    pub image_gone: &'static str,
    /// What the refusal of a create without an image says.
    pub image_missing: &'static str,
    /// Whether a VM of the same name is in the way.
    pub names_are_unique: bool,
    /// How fast VMs may be asked for with our usual budget.
    pub schedule: Schedule,
    /// Most calls of a pod's life: alone, and among a hundred at once (performance goal P10).
    pub calls: (f64, f64),
    /// Status by which too many calls are refused.
    pub throttle: u16,
}

/// A bucket of creates.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Refill.
    pub per_second: f64,
    /// Size.
    pub burst: u32,
}

impl Schedule {
    /// How long that many take at best, seconds, after the first.
    pub fn best(&self, creates: u8) -> f64 {
        f64::from(u32::from(creates).saturating_sub(self.burst)) / self.per_second
    }
}

/// What must never be seen in a log, nor a private key's first line.
pub const SECRET: &str = "hunter2-client-secret";

/// Those that this build has.
pub const CLOUDS: &[Cloud] = &[
    #[cfg(feature = "aws")]
    AWS,
    #[cfg(feature = "azure")]
    AZURE,
    #[cfg(feature = "gcp")]
    GCP,
];

#[cfg(feature = "aws")]
const AWS: Cloud = Cloud {
    name: "aws",
    script: "aws.py",
    flavour: Flavour::Aws,
    guide: &[
        ("CLOUD_PROVIDER", "aws"),
        ("VXLAN_PORT", "9000"),
        ("PROXY_TIMEOUT", "5m"),
        ("PODVM_INSTANCE_TYPE", "t3.medium"),
        ("PODVM_INSTANCE_TYPES", "t2.small,t2.medium,t3.large"),
        ("PODVM_AMI_ID", "ami-0114183d260f486ec"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_SUBNET_ID", "subnet-e70cad19461922995"),
        ("AWS_VPC_ID", "vpc-4283fefc63f0cd0e8"),
        ("AWS_SG_IDS", "sg-aecac22ae386fb856"),
        ("TAGS", "key1=value1,key2=value2"),
        ("PEERPODS_LIMIT_PER_NODE", "10"),
        ("ROOT_VOLUME_SIZE", "6"),
        ("DISABLECVM", "true"),
    ],
    secret: &[("AWS_ACCESS_KEY_ID", "AKIADOUBLE"), ("AWS_SECRET_ACCESS_KEY", SECRET)],
    key: None,
    beyond: &[("API_RATE_RUN_INSTANCES", "1000"), ("API_RATE_TERMINATE_INSTANCES", "1000")],
    endpoints: &["AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL_STS"],
    default_type: "t3.medium",
    image_gone: r#"{"gone": true}"#,
    image_missing: "InvalidAMIID.NotFound",
    names_are_unique: false,
    // Half of what is published: 2 a second, five at once.
    schedule: Schedule { per_second: 1.0, burst: 2 },
    calls: (2.0, 1.1),
    throttle: 503,
};

#[cfg(feature = "azure")]
const AZURE: Cloud = Cloud {
    name: "azure",
    script: "arm.py",
    flavour: Flavour::Azure,
    guide: &[
        ("CLOUD_PROVIDER", "azure"),
        ("VXLAN_PORT", "9000"),
        ("PROXY_TIMEOUT", "5m"),
        ("AZURE_INSTANCE_SIZE", "Standard_B2als_v2"),
        (
            "AZURE_INSTANCE_SIZES",
            "Standard_B2als_v2,Standard_D2as_v5,Standard_D4as_v5,Standard_D2ads_v5",
        ),
        (
            "AZURE_SUBNET_ID",
            "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/pods/providers/\
             Microsoft.Network/virtualNetworks/net/subnets/pods",
        ),
        (
            "AZURE_NSG_ID",
            "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/pods/providers/\
             Microsoft.Network/networkSecurityGroups/pods",
        ),
        (
            "AZURE_IMAGE_ID",
            "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/pods/providers/\
             Microsoft.Compute/galleries/podvm/images/podvm/versions/1.0.0",
        ),
        ("AZURE_REGION", "eastus"),
        ("AZURE_RESOURCE_GROUP", "pods"),
        ("TAGS", "key1=value1,key2=value2"),
        ("PEERPODS_LIMIT_PER_NODE", "10"),
        ("ROOT_VOLUME_SIZE", "6"),
        ("DISABLECVM", "true"),
    ],
    secret: &[
        ("AZURE_CLIENT_ID", "00000000-0000-0000-0000-00000000000a"),
        ("AZURE_TENANT_ID", "00000000-0000-0000-0000-00000000000b"),
        ("AZURE_CLIENT_SECRET", SECRET),
        ("AZURE_SUBSCRIPTION_ID", "00000000-0000-0000-0000-000000000001"),
    ],
    key: None,
    beyond: &[("API_RATE_VM_LIST", "1000"), ("API_RATE_ARM_READ", "1000")],
    endpoints: &["AZURE_ARM_ENDPOINT", "AZURE_AUTHORITY_HOST"],
    default_type: "Standard_B2als_v2",
    image_gone: r#"{"gone": ["galleries"]}"#,
    image_missing: "GalleryImageNotFound",
    names_are_unique: true,
    // Half of what is published: 500 a minute, three minutes of them at once.
    schedule: Schedule { per_second: 4.1, burst: 738 },
    calls: (5.0, 5.0),
    throttle: 429,
};

#[cfg(feature = "gcp")]
const GCP: Cloud = Cloud {
    name: "gcp",
    script: "gcp.py",
    flavour: Flavour::Gcp,
    guide: &[
        ("CLOUD_PROVIDER", "gcp"),
        ("VXLAN_PORT", "9000"),
        ("PROXY_TIMEOUT", "5m"),
        ("GCP_MACHINE_TYPE", "e2-medium"),
        ("GCP_PROJECT_ID", "peerpod-test"),
        ("GCP_ZONE", "europe-west1-b"),
        ("GCP_NETWORK", "default"),
        ("PODVM_IMAGE_NAME", "podvm"),
        ("TAGS", "key1=value1,key2=value2"),
        ("PEERPODS_LIMIT_PER_NODE", "10"),
        ("ROOT_VOLUME_SIZE", "6"),
        ("DISABLECVM", "true"),
    ],
    secret: &[],
    key: Some("GCP_CREDENTIALS"),
    beyond: &[
        ("GCP_INSTANCE_TYPES", "e2-medium,e2-standard-4,n1-standard-4"),
        ("API_RATE_LIST", "1000"),
    ],
    endpoints: &["GCP_COMPUTE_ENDPOINT"],
    default_type: "e2-medium",
    image_gone: r#"{"gone": ["podvm"]}"#,
    image_missing: "images/podvm",
    names_are_unique: true,
    // Half of what is published: 1500 a minute.
    schedule: Schedule { per_second: 12.5, burst: 750 },
    calls: (4.0, 4.0),
    throttle: 403,
};

impl Cloud {
    /// The daemon's environment, with the double at `url`.
    pub fn environment(&self, url: &str) -> Vec<(String, String)> {
        let plain = self.guide.iter().chain(self.secret).chain(self.beyond);
        let plain = plain.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let there = self.endpoints.iter().map(|key| ((*key).to_owned(), url.to_owned()));
        plain.chain(there).collect()
    }

    /// Whether that status says that there are too many calls.
    pub fn is_throttle(&self, status: u16) -> bool {
        status == self.throttle
    }
}
