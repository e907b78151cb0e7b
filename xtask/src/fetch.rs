//! Private copies of programs with another TLS library than the machine's, for the end-to-end tests.
//!
//! ```text
//! target/fixtures/                what VORTEX_TEST_DIR names
//!   openssl-1.1.1/                bullseye: bin/openssl, bin/curl
//!   openssl-3.5/                  trixie:   bin/openssl, bin/curl, bin/python3
//!   nginx/                        trixie:   bin/nginx (so that no service is installed)
//!   containerd/                   bookworm: bin/containerd, its shim, bin/ctr, bin/runc, bin/busybox
//!   podman/                       bookworm: bin/podman, bin/conmon
//!   bun/, deno/, deno-2.5/, claude/, codex/, opencode/  npm: bin/NAME alone, the real file
//!   rustls-ring/, rustls-aws-lc-rs/  crates: bin/client and bin/stripped, ours, with this provider
//!   go/                           our Go program, made by several versions of Go: bin/tls-VERSION alone
//!   native-tls/, native-tls-vendored/  crates: bin/client and bin/stripped, ours, with the machine's OpenSSL or
//!                                 with one of its own
//!   awscrt/, curl_cffi/, grpcio/, httpx/, kubernetes-validate/, mcp/, pyopenssl/, pyopenssl-1.1.1/, rotel/, sdks/, websockets/  PyPI: the unpacked wheels, for PYTHONPATH
//!   containerd-1.7/               bin/containerd, its shim and bin/ctr (trixie) alone, for this machine's libc
//!   kubernetes/                   bin/kubectl (trixie), and bin/chart, ours, made with Helm's parts
//!     bin/NAME                    start this: sets the environment, then `exec`s the real file, so
//!                                 the process is root/usr/bin/NAME under the pid that was started
//!     env                         the same environment as KEY=VALUE lines
//!     root/usr/bin, root/usr/sbin the real files; they ask for the dynamic loader below
//!     root/usr/lib/x86_64-linux-gnu   libssl.so.*, libcrypto.so.* and the other libraries
//!     stamp                       what was fetched; a directory without it is unfinished
//! ```
//!
//! Children of such a process inherit its `LD_LIBRARY_PATH`, which the machine's own programs do not
//! survive: start them with it removed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    apt::{self, Apt},
    sh::{self, MINUTE, SECOND},
};

/// The tests' own: a wheel is for one version.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// The tools for `deploy/kubernetes`.
pub(crate) const KUBERNETES: &str = "kubernetes";
pub(crate) const VALIDATE: &str = "kubernetes-validate";

struct Fixture {
    name: &'static str,
    release: &'static str,
    packages: &'static [&'static str],
    /// Name in `bin`, real file, how it shows its version, what that must contain.
    programs: &'static [(
        &'static str,
        &'static str,
        &'static [&'static str],
        &'static str,
    )],
}

const FIXTURES: &[Fixture] = &[
    Fixture {
        name: "openssl-1.1.1",
        release: "bullseye",
        packages: &["openssl", "curl"],
        programs: &[
            ("openssl", "usr/bin/openssl", &["version"], "OpenSSL 1.1.1"),
            ("curl", "usr/bin/curl", &["--version"], "OpenSSL/1.1.1"),
        ],
    },
    Fixture {
        name: "openssl-3.5",
        release: "trixie",
        packages: &["openssl", "curl", "python3.13"],
        programs: &[
            ("openssl", "usr/bin/openssl", &["version"], "OpenSSL 3.5"),
            ("curl", "usr/bin/curl", &["--version"], "OpenSSL/3.5"),
            (
                "python3",
                "usr/bin/python3.13",
                &["-c", "import ssl; print(ssl.OPENSSL_VERSION)"],
                "OpenSSL 3.5",
            ),
        ],
    },
    Fixture {
        name: "nginx",
        release: "trixie",
        packages: &["nginx"],
        programs: &[("nginx", "usr/sbin/nginx", &["-V"], "OpenSSL 3.5")],
    },
    Fixture {
        name: "containerd",
        release: "bookworm",
        packages: &["containerd", "runc", "busybox-static"],
        programs: &[
            ("containerd", "usr/bin/containerd", &["--version"], "1.6"),
            (
                "containerd-shim-runc-v2",
                "usr/bin/containerd-shim-runc-v2",
                &["-v"],
                "1.6",
            ),
            ("ctr", "usr/bin/ctr", &["--version"], "1.6"),
            ("runc", "usr/sbin/runc", &["--version"], "1.1"),
            ("busybox", "bin/busybox", &["--help"], "BusyBox"),
        ],
    },
    Fixture {
        name: "podman",
        release: "bookworm",
        packages: &["podman", "conmon"],
        programs: &[
            (
                "podman",
                "usr/bin/podman",
                &["--version"],
                "podman version 4",
            ),
            (
                "conmon",
                "usr/bin/conmon",
                &["--version"],
                "conmon version 2",
            ),
        ],
    },
];

/// A program that npm has.
struct Package {
    name: &'static str,
    package: &'static str,
    file: &'static str,
    sha256: &'static str,
}

const PACKAGES: &[Package] = &[
    Package {
        name: "bun",
        package: "@oven/bun-linux-x64@1.4.5",
        file: "package/bin/bun",
        sha256: "f05d28a3862f4b84395c7fa32480b835dd47482e80b7e7a49a115227f0c06083",
    },
    Package {
        name: "deno",
        package: "@deno/linux-x64-glibc@2.9.6",
        file: "package/deno",
        sha256: "bceb5b6a6239b0b010418406d8c77a508f67cf4337d94288f1c19fe71304aab0",
    },
    Package {
        name: "deno-2.5",
        package: "@deno/linux-x64-glibc@2.5.0",
        file: "package/deno",
        sha256: "b12e779eed2736a84cce7f405ae0d976bd85cb6feb33d6ea603fd4367ff19e56",
    },
    Package {
        name: "claude",
        package: "@anthropic-ai/claude-code-linux-x64@2.1.330",
        file: "package/claude",
        sha256: "f390eaa0814e6a1bff74cbb47acb74cb9c89d30ced809fe0af5af00c7bfe8ebb",
    },
    Package {
        name: "codex",
        package: "@openai/codex@0.169.0-linux-x64",
        file: "package/vendor/x86_64-unknown-linux-musl/bin/codex",
        sha256: "b452ca20f838a8855a88a41050ee4a694033fff4ea3ecdad5633e6e0e8d13f2b",
    },
    Package {
        name: "opencode",
        package: "opencode-linux-x64@1.18.33",
        file: "package/bin/opencode",
        sha256: "0abbb7c32ab0294c0a7bfa2705f9ff0df5dce5ab721d1f00cccfe393f2a11427",
    },
];

/// A client of ours: which fixture it becomes, where it is in `tests/programs`, with which feature.
type Client = (&'static str, &'static str, &'static str);

const CLIENTS: [Client; 4] = [
    ("rustls-ring", "rustls", "ring"),
    ("rustls-aws-lc-rs", "rustls", "aws-lc-rs"),
    ("native-tls", "native-tls", "default"),
    ("native-tls-vendored", "native-tls", "vendored"),
];

/// Our Go program as one version of Go makes it.
struct Build {
    name: &'static str,
    release: &'static str,
    version: &'static str,
    options: &'static [&'static str],
}

/// The oldest that Debian has, one in the middle, and one that says only in its own data where its code begins.
const BUILDS: &[Build] = &[
    Build {
        name: "tls-1.19-pie",
        release: "bookworm",
        version: "1.19",
        options: &["-buildmode=pie", "-ldflags=-s -w"],
    },
    Build {
        name: "tls-1.24",
        release: "trixie",
        version: "1.24",
        options: &[],
    },
    Build {
        name: "tls-1.27-stripped",
        release: "trixie",
        version: "1.27",
        options: &["-ldflags=-s -w"],
    },
];

/// A Python package with a library inside, and what it needs: each with its version and its hash.
struct Wheel {
    name: &'static str,
    packages: &'static [(&'static str, &'static str)],
}

const CFFI: (&str, &str) = (
    "cffi==2.0.0",
    "8941aaadaf67246224cee8c3803777eed332a19d909b47e29c9842ef1e79ac26",
);
const CERTIFI: (&str, &str) = (
    "certifi==2026.10.18",
    "73191c47aaa79da394e8fee2dbc2ec827432cab56311122c9e47abf79e390f62",
);
const TYPING: (&str, &str) = (
    "typing_extensions==4.15.0",
    "f0fa19c6845758ab08074a0cfa8b7aecb71c999ca73d62883bc25cc018c4e548",
);

const WHEELS: &[Wheel] = &[
    Wheel {
        name: "awscrt",
        packages: &[(
            "awscrt==0.38.1",
            "00de63a5a88d722cb7d515bbe35c1a723bd8d53a3bfcc2015bd57cc9ac6196b8",
        )],
    },
    Wheel {
        name: "pyopenssl",
        packages: &[
            (
                "pyOpenSSL==26.4.0",
                "f0eb0cb2d581d3ad2b9c489468485e7f2ab6727d08401bcf9d824c3caddf3c1c",
            ),
            (
                "cryptography==50.0.2",
                "9dab55f57c74c3cad24c323bacbbd04be4705ba6eb0d92e920b1fc4837ed5079",
            ),
            CFFI,
            TYPING,
        ],
    },
    Wheel {
        name: "pyopenssl-1.1.1",
        packages: &[
            (
                "pyOpenSSL==22.0.0",
                "ea252b38c87425b64116f808355e8da644ef9b07e429398bfece610f893ee2e0",
            ),
            (
                "cryptography==36.0.2",
                "c2c5250ff0d36fd58550252f54915776940e4e866f38f3a7866d92b32a654b86",
            ),
            CFFI,
        ],
    },
    Wheel {
        name: "grpcio",
        packages: &[
            (
                "grpcio==1.85.1",
                "83aced2a1c05648cee0de34e531351118b14c58238f0a61b43559ac8851647a8",
            ),
            TYPING,
        ],
    },
    // A collector: a program, and the Python around it.
    Wheel {
        name: "rotel",
        packages: &[(
            "rotel==0.0.1a15",
            "2f4117e58410c933e0dc042a268ef738dab2e3a5d63b5831209acdac2a6ddcb7",
        )],
    },
    Wheel {
        name: "httpx",
        packages: &[
            (
                "httpx==0.28.1",
                "d909fcccc110f8c7faf814ca82a9a4d816bc5a6dbfea25d6591d6985b8ba59ad",
            ),
            (
                "httpcore==1.0.9",
                "2d400746a40668fc9dec9810239072b40b4484b640a8c38fd654a024c7a1bf55",
            ),
            (
                "h2==4.4.1",
                "0e25f1462b23c9cb82d9eb02e28bc706dac2a68cb457c6a0d74d63c8a2a5d0e6",
            ),
            (
                "hpack==4.2.0",
                "858ac0b02280fa582b5080d68db0899c62a80375e0e5413a74970c5e518b6986",
            ),
            (
                "hyperframe==6.1.0",
                "b03380493a519fce58ea5af42e4a42317bf9bd425596f7a0835ffce80f1a42e5",
            ),
            (
                "h11==0.16.0",
                "63cf8bbe7522de3bf65932fda1d9c2772064ffb3dae62d55932da54b31cb6c86",
            ),
            (
                "anyio==4.16.0",
                "c66ae634e0b8228396b801741beb3294326d4b6102f7bba4041c0dfb58c29026",
            ),
            (
                "idna==3.20",
                "ab7ae7122974553370f0bdb919e1a960b2cd1bc1ef0276416d896db81c14582c",
            ),
            CERTIFI,
            (
                "typing_extensions==4.16.0",
                "481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8",
            ),
            (
                "brotli==1.2.1",
                "6b3c3d5794212a54434b4856f808f7bdf7ad48eacadaadb5b2346fc9a639365a",
            ),
            (
                "zstandard==0.25.0",
                "9300d02ea7c6506f00e627e287e0492a5eb0371ec1670ae852fefffa6164b072",
            ),
        ],
    },
    Wheel {
        name: VALIDATE,
        packages: &[
            (
                "kubernetes-validate==1.37.0",
                "85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9",
            ),
            (
                "attrs==26.1.0",
                "c647aa4a12dfbad9333ca4e71fe62ddc36f4e63b2d260a37a8b83d2f043ac309",
            ),
            (
                "importlib_resources==7.1.0",
                "1bd7b48b4088eddb2cd16382150bb515af0bd2c70128194392725f82ad2c96a1",
            ),
            (
                "jsonschema==4.26.0",
                "d489f15263b8d200f8387e64b4c3a75f06629559fb73deb8fdfb525f2dab50ce",
            ),
            (
                "jsonschema_specifications==2025.9.1",
                "98802fee3a11ee76ecaca44429fda8a41bff98b00a0f2838151b113f210cc6fe",
            ),
            (
                "packaging==26.3",
                "d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c",
            ),
            (
                "PyYAML==6.0.3",
                "b8bb0864c5a28024fac8a632c443c87c5aa6f215c0b126c449ae1a150412f31d",
            ),
            (
                "referencing==0.37.0",
                "381329a9f99628c9069361716891d34ad94af76e461dcb0335825aecc7692231",
            ),
            (
                "rpds_py==2026.9.1",
                "136a1c3fe4402b7008bc81cb62ee538481795b61a7e83df88dff3b3f02b726ff",
            ),
            (
                "typing_extensions==4.16.0",
                "481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8",
            ),
        ],
    },
    // What people ask providers of language models with, and HTTP/2 for it. What only other parts of these SDKs
    // need is left out.
    Wheel {
        name: "sdks",
        packages: &[
            (
                "annotated_types==0.8.0",
                "f072f4d804ea359e4eaf198b1af7a8b0943881a87f31bb764f8bf219bb9419e0",
            ),
            (
                "anthropic==2.12.0",
                "8631e3880ee18b0f87ce61d5d08e67804200463cf27c4182024715e232c99ba6",
            ),
            (
                "anyio==4.16.0",
                "c66ae634e0b8228396b801741beb3294326d4b6102f7bba4041c0dfb58c29026",
            ),
            (
                "boto3==1.44.5",
                "70c3e0409794b29ec1900bcaff0695b73234a2d32ffaed35045b94caa26212a5",
            ),
            (
                "botocore==1.44.5",
                "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
            ),
            CERTIFI,
            (
                "charset_normalizer==3.5.2",
                "211d5a3eb6af8f513b8d4ca19a8c1b7accab1b5f0d3175f9826b03c1a920dc1f",
            ),
            (
                "cohere==7.3.1",
                "89fff06d20c0e70c96678948599c0fb9e7d5e4241c2592a16fdd111a84e11d5a",
            ),
            (
                "docstring_parser==0.18.0",
                "b3fcbed555c47d8479be0796ef7e19c2670d428d72e96da63f3a40122860374b",
            ),
            (
                "fastavro==1.13.1",
                "950f2e260f65c7e6135288c142b078d06d2f1c90fc52f91a14c08e5f8811bf06",
            ),
            (
                "google_auth==2.62.2",
                "e9bcdb0679b6a4369ac327c5c59f06d92f7b4cd2624e7100294c14632f55a36b",
            ),
            (
                "google_genai==3.4.0",
                "1da2cb06b4560e2046d04c0a5c91b3ba0a0b9155e98158b584f3583ad000090d",
            ),
            (
                "h11==0.16.0",
                "63cf8bbe7522de3bf65932fda1d9c2772064ffb3dae62d55932da54b31cb6c86",
            ),
            (
                "h2==4.4.1",
                "0e25f1462b23c9cb82d9eb02e28bc706dac2a68cb457c6a0d74d63c8a2a5d0e6",
            ),
            (
                "hpack==4.2.0",
                "858ac0b02280fa582b5080d68db0899c62a80375e0e5413a74970c5e518b6986",
            ),
            (
                "httpcore==1.0.9",
                "2d400746a40668fc9dec9810239072b40b4484b640a8c38fd654a024c7a1bf55",
            ),
            (
                "httpcore2==2.16.2",
                "16051ae2a42f776007543f32de9349a317b23d2cbb4e1456b4bac0e88b87419a",
            ),
            (
                "httpx==0.28.1",
                "d909fcccc110f8c7faf814ca82a9a4d816bc5a6dbfea25d6591d6985b8ba59ad",
            ),
            (
                "httpx2==2.16.2",
                "f05c13aade4c45dbf1c9060647a1058f0acad62398fad96e741269edb33d46f5",
            ),
            (
                "hyperframe==6.1.0",
                "b03380493a519fce58ea5af42e4a42317bf9bd425596f7a0835ffce80f1a42e5",
            ),
            (
                "idna==3.20",
                "ab7ae7122974553370f0bdb919e1a960b2cd1bc1ef0276416d896db81c14582c",
            ),
            (
                "jiter==0.19.0",
                "cc4a2b70ecd4f102583344c1f8cc5dc11618665b1889286bb3b4279c19b337dd",
            ),
            (
                "jmespath==1.1.0",
                "a5663118de4908c91729bea0acadca56526eb2698e83de10cd116ae0f4e97c64",
            ),
            (
                "mistralai==3.7.0",
                "23ceda7ae52557578427af5a9caffb2222cd11dd7d43eb1792ded35b2a84d939",
            ),
            (
                "ollama==0.6.3",
                "6a20bc42c1a5f889295d7ec490d35e5132fc31f339561530f43a8abd4dbfe508",
            ),
            (
                "openai==3.54.0",
                "3cdb7d0d85bb765c7c92e7e2922c4a6cb9beb085b161b03da07f4dff61805916",
            ),
            (
                "opentelemetry_api==1.45.2",
                "2cbd737377e710ee740d261c94e93fa0f08e6d037c18f17513cc0a2d94479a34",
            ),
            (
                "opentelemetry_semantic_conventions==0.66b2",
                "4cbe61e5f9275d57ab31708446e7938ef4291ebbe6a7fca6f7a629c5acae87d8",
            ),
            (
                "pydantic==2.14.3",
                "3f7b347782ab7e4cf4c798496ae3a82787d9f21ec12676a9c564355eeef8daa8",
            ),
            (
                "pydantic_core==2.50.4",
                "0574866e05f6adeecc520d87e87dd06210c0a51706341f6ef8421572f5a64444",
            ),
            (
                "python_dateutil==2.9.0.post0",
                "a8b2bc7bffae282281c8140a97d3aa9c14da0b136dfe83f850eea9a5f7470427",
            ),
            (
                "requests==2.34.2",
                "2a0d60c172f83ac6ab31e4554906c0f3b3588d37b5cb939b1c061f4907e278e0",
            ),
            (
                "s3transfer==0.19.3",
                "24eb7535804306355e31c952a90022bf5b2f9d760f9a11062c7493a217c08553",
            ),
            (
                "six==1.17.0",
                "4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274",
            ),
            (
                "sniffio==1.3.1",
                "2f6da418d1f1e0fddd844478f41680e794e6051915791a034ff65e5f100525a2",
            ),
            (
                "tenacity==9.1.4",
                "6095a360c919085f28c6527de529e76a06ad89b23659fa881ae0649b867a9d55",
            ),
            (
                "tokenizers==0.23.3",
                "376851d22bcf9d650a5c3090bb83e6cf9e895fbf0595369fa4cd43c1f69b5f87",
            ),
            (
                "truststore==0.10.5",
                "9aaaedaefaf06d8b206278cf8b5012bc897f485a874503501e12d776df78951c",
            ),
            (
                "typing_extensions==4.16.0",
                "481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8",
            ),
            (
                "typing_inspection==0.4.5",
                "bc210535442b39e1bf2805e0c7a17dfd6a4ace760c84c7f7d16245d23a6b1c39",
            ),
            (
                "urllib3==2.8.0",
                "0cf3cae568d36aa9576b28dfb35f11328f1cb974ca7647d9475ebb86c75ac6e3",
            ),
            (
                "websockets==17.4",
                "cebad8f4796248b91fc2168515e507e5cb6b663a32befd09f3b1e7920acdcb1a",
            ),
        ],
    },
    // The Model Context Protocol, besides what is in `sdks`, and without PyJWT, which only some ways to log in need.
    Wheel {
        name: "mcp",
        packages: &[
            (
                "attrs==26.1.0",
                "c647aa4a12dfbad9333ca4e71fe62ddc36f4e63b2d260a37a8b83d2f043ac309",
            ),
            (
                "click==8.5.1",
                "8bb5376d2006950386f8c6427613334a2acadc5f559cb80e638d00b4df957e37",
            ),
            (
                "jsonschema==4.26.0",
                "d489f15263b8d200f8387e64b4c3a75f06629559fb73deb8fdfb525f2dab50ce",
            ),
            (
                "jsonschema_specifications==2025.9.1",
                "98802fee3a11ee76ecaca44429fda8a41bff98b00a0f2838151b113f210cc6fe",
            ),
            (
                "mcp==2.3.0",
                "dd0c44c089d16453e8ae31a3877a0054d7a2314caaa81f5e0541b9b1734b2377",
            ),
            (
                "mcp_types==2.3.0",
                "968efdbdaedfab06adae40d378a34395f1090c5921d4be3c9cde283aaf76d91d",
            ),
            (
                "python_multipart==0.0.34",
                "ebacd224bd686eee2f9aa1066a657affe07435a185834e05e5235e2e59173e91",
            ),
            (
                "referencing==0.37.0",
                "381329a9f99628c9069361716891d34ad94af76e461dcb0335825aecc7692231",
            ),
            (
                "rpds_py==2026.9.1",
                "136a1c3fe4402b7008bc81cb62ee538481795b61a7e83df88dff3b3f02b726ff",
            ),
            (
                "sse_starlette==3.7.0",
                "f1d3136caa12d129284fca3d2ded79bc9af943320b6472712955fea52a6d3eea",
            ),
            (
                "starlette==1.10.0",
                "478c0ab3b4ced6e82719849c118fa406f0278a3499c1a898cd15cd31bdc38ce4",
            ),
            (
                "uvicorn==0.54.0",
                "505bdb0f318731d45f1f712071fc781a8981f6847a31c902c9f5e652d4f67faf",
            ),
        ],
    },
    Wheel {
        name: "websockets",
        packages: &[(
            "websockets==17.4",
            "cebad8f4796248b91fc2168515e507e5cb6b663a32befd09f3b1e7920acdcb1a",
        )],
    },
    Wheel {
        name: "curl_cffi",
        packages: &[
            (
                "curl_cffi==0.16.3",
                "a875a661e2f9a949be29454880bbb9553307a487c4c08819738298cf5c1622e2",
            ),
            CERTIFI,
            (
                "cffi==2.1.1",
                "34e261f78cb6ceaaa36f42f2613f4380d94d9c759a9c73c769ee6e0247364632",
            ),
            (
                "pycparser==3.12",
                "a076f3f489b39b43ed13563a1dafe42447445bec2e294154ec5c57fcdda4c85e",
            ),
        ],
    },
];

/// Makes every fixture that is not there yet, and says where they are.
pub(crate) fn fixtures(update: bool) -> Result<PathBuf> {
    let _lock = apt::lock()?;
    let dir = sh::target().join("fixtures");
    for fixture in FIXTURES {
        let to = dir.join(fixture.name);
        tree(&to, fixture.release, fixture.packages, update, |dir| {
            fixture.wrap(dir)?;
            fixture.check(dir)
        })
        .with_context(|| format!("could not make the fixture {}", fixture.name))?;
    }
    for package in PACKAGES {
        package
            .unpack(&dir.join(package.name))
            .with_context(|| format!("could not make the fixture {}", package.name))?;
    }
    containerd(&dir.join("containerd-1.7"), update)
        .context("could not make the fixture containerd-1.7")?;
    builds(&dir.join("go"), update).context("could not make the fixture go")?;
    kubernetes(&dir.join(KUBERNETES), update).context("could not make the fixture kubernetes")?;
    for wheel in WHEELS {
        wheel
            .unpack(&dir.join(wheel.name))
            .with_context(|| format!("could not make the fixture {}", wheel.name))?;
    }
    for (name, program, feature) in CLIENTS {
        client(&dir.join(name), program, feature)
            .with_context(|| format!("could not build the client {name}"))?;
    }
    sh::say(&format!("  private copies are in {}", dir.display()));
    Ok(dir)
}

/// Those that `deploy/kubernetes` is checked with.
pub(crate) fn for_manifests() -> Result<PathBuf> {
    let _lock = apt::lock()?;
    let dir = sh::target().join("fixtures");
    kubernetes(&dir.join(KUBERNETES), false)?;
    for wheel in WHEELS.iter().filter(|wheel| wheel.name == VALIDATE) {
        wheel.unpack(&dir.join(wheel.name))?;
    }
    Ok(dir)
}

/// `to/bin/NAME` of each build, unless they are there. The compilers don't stay: they are large.
fn builds(to: &Path, update: bool) -> Result<()> {
    let source = sh::root().join("tests/programs/tls.go");
    let mut stamp = fs::read_to_string(&source)?;
    for build in BUILDS {
        stamp += &format!("// {} {} {:?}\n", build.name, build.version, build.options);
    }
    if !update && fs::read_to_string(to.join("stamp")).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to.join("bin"))?;
    let work = sh::target().join("fetch/go");
    for build in BUILDS {
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(&work)?;
        build.make(&source, &work, &to.join("bin"), update)?;
    }
    fs::remove_dir_all(&work)?;
    fs::write(to.join("stamp"), stamp)?;
    Ok(())
}

/// `to/bin/NAME` of each program, unless they are there. The libraries of its release stay away: it passes on where they
/// are looked for, and starts programs of this machine.
fn containerd(to: &Path, update: bool) -> Result<()> {
    const RELEASE: &str = "trixie";
    const PACKAGE: &str = "containerd";
    const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];
    let stamp = format!("{RELEASE} {PACKAGE} {PROGRAMS:?}\n");
    if !update && fs::read_to_string(to.join("stamp")).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    sh::say(&format!("  fetching {PACKAGE} ({RELEASE})"));
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    let (bin, work) = (to.join("bin"), to.join("work"));
    fs::create_dir_all(&bin)?;
    fs::create_dir(&work)?;
    Apt::open(RELEASE, update)?.unpack_alone(PACKAGE, &work)?;
    for program in PROGRAMS {
        fs::rename(work.join("usr/bin").join(program), bin.join(program))?;
        let said = sh::output(sh::command(bin.join(program)).arg("-v"), 30 * SECOND)?;
        ensure!(said.contains(" 1.7."), "{program} says: {said}");
    }
    fs::remove_dir_all(work)?;
    fs::write(to.join("stamp"), stamp)?;
    Ok(())
}

/// `to/bin/kubectl` and `to/bin/chart`, unless they are there. Compiler and sources don't stay.
fn kubernetes(to: &Path, update: bool) -> Result<()> {
    const KUBECTL: &str = "kubectl";
    const SOURCES: [&str; 3] = [
        "golang-go",
        "golang-github-masterminds-sprig-dev",
        "golang-github-ghodss-yaml-dev",
    ];
    let source = sh::root().join("tests/programs/chart.go");
    let stamp = fs::read_to_string(&source)? + &format!("// {KUBECTL} {SOURCES:?}\n");
    if !update && fs::read_to_string(to.join("stamp")).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    sh::say("  fetching kubectl (trixie) and what Helm is made of (bookworm)");
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    let (bin, work) = (to.join("bin"), to.join("work"));
    fs::create_dir_all(&bin)?;
    fs::create_dir(&work)?;
    Apt::open("trixie", update)?.unpack_alone(KUBECTL, &work)?;
    fs::rename(work.join("usr/bin").join(KUBECTL), bin.join(KUBECTL))?;
    let go = work.join("go");
    Apt::open("bookworm", update)?.unpack_closure(&SOURCES, &go)?;
    let root = go.join("usr/lib/go-1.19");
    let mut build = go_build(&root, &work);
    build.arg("-o").arg(bin.join("chart")).arg(source);
    sh::run(
        build.env("GOPATH", go.join("usr/share/gocode")),
        10 * MINUTE,
    )?;
    fs::remove_dir_all(work)?;
    fs::write(to.join("stamp"), stamp)?;
    Ok(())
}

/// By the Go below `root`: nothing but what Debian has, no C compiler, and no newer Go from elsewhere.
fn go_build(root: &Path, work: &Path) -> std::process::Command {
    let mut go = sh::command(root.join("bin/go"));
    go.arg("build")
        .env("GOROOT", root)
        .env("GOCACHE", work.join("cache"))
        .env("GOPATH", work.join("path"))
        .env("GO111MODULE", "off")
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "")
        .env("CGO_ENABLED", "0");
    go
}

impl Build {
    fn make(&self, source: &Path, work: &Path, to: &Path, update: bool) -> Result<()> {
        let version = self.version;
        sh::say(&format!("  fetching Go {version} ({})", self.release));
        let apt = Apt::open(self.release, update)?;
        for part in ["go", "src"] {
            apt.unpack_alone(&format!("golang-{version}-{part}"), work)?;
        }
        let root = work.join(format!("usr/lib/go-{version}"));
        let mut go = go_build(&root, work);
        go.args(self.options).arg("-o");
        go.arg(to.join(self.name)).arg(source);
        sh::run(&mut go, 10 * MINUTE)
    }
}

/// `to/root` with the packages and all they need, unless it is there. The stamp comes last; it names
/// the place, too, because the path of the loader is absolute.
pub(crate) fn tree(
    to: &Path,
    release: &str,
    packages: &[&str],
    update: bool,
    finish: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    unless_there(to, release, packages, update, |apt| {
        apt.unpack_closure(packages, &to.join("root"))?;
        finish(to)
    })
}

/// The same as a machine of its own, which dpkg can go on with.
pub(crate) fn machine(to: &Path, release: &str, packages: &[&str], update: bool) -> Result<()> {
    unless_there(to, release, packages, update, |apt| {
        apt.unpack_machine(packages, &to.join("root"))
    })
}

fn unless_there(
    to: &Path,
    release: &str,
    packages: &[&str],
    update: bool,
    make: impl FnOnce(&Apt) -> Result<()>,
) -> Result<()> {
    const LAYOUT: u32 = 1;
    let stamp = format!(
        "{LAYOUT} {} {release} {}\n",
        to.display(),
        packages.join(" ")
    );
    if !update && fs::read_to_string(to.join("stamp")).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    sh::say(&format!("  fetching {} ({release})", packages.join(", ")));
    let apt = Apt::open(release, update)?;
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("could not remove {}", to.display()))?;
    }
    make(&apt)?;
    fs::write(to.join("stamp"), stamp)?;
    Ok(())
}

/// `to/bin/client`, and the same without its symbols, unless they are there. The stamp comes last.
fn client(to: &Path, program: &str, feature: &str) -> Result<()> {
    let source = sh::root().join("tests/programs").join(program);
    let mut stamp = String::new();
    for file in ["Cargo.toml", "Cargo.lock", "main.rs", "../requests.rs"] {
        stamp += &fs::read_to_string(source.join(file))?;
    }
    if fs::read_to_string(to.join("stamp")).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    sh::say(&format!("  building a client with {program} ({feature})"));
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    let bin = to.join("bin");
    fs::create_dir_all(&bin)?;
    let mut cargo = sh::command("cargo");
    cargo
        .args(["build", "--release", "--locked", "--features", feature])
        .arg("--manifest-path")
        .arg(source.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", to.join("target"));
    sh::run(&mut cargo, 20 * MINUTE)?;
    let client = bin.join("client");
    let built = format!("target/release/{program}-client");
    fs::rename(to.join(built), &client)?;
    let mut strip = sh::command("strip");
    strip.arg("-o").arg(bin.join("stripped")).arg(&client);
    sh::run(&mut strip, MINUTE)?;
    fs::remove_dir_all(to.join("target"))?;
    fs::write(to.join("stamp"), stamp)?;
    Ok(())
}

impl Package {
    /// `to/bin/NAME`, unless it is there. The stamp comes last.
    fn unpack(&self, to: &Path) -> Result<()> {
        let stamp = format!("{} {}\n", self.package, self.sha256);
        if fs::read_to_string(to.join("stamp")).is_ok_and(|found| found == stamp) {
            return Ok(());
        }
        sh::say(&format!("  fetching {} (npm)", self.package));
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        fs::create_dir_all(to.join("bin"))?;
        let mut npm = sh::command("npm");
        npm.args(["pack", "--silent", self.package]).current_dir(to);
        let archive = sh::output(&mut npm, 10 * MINUTE)?;
        let mut tar = sh::command("tar");
        tar.args(["xzf", archive.trim(), self.file]).current_dir(to);
        sh::run(&mut tar, MINUTE)?;
        let program = to.join("bin").join(self.name);
        fs::rename(to.join(self.file), &program)?;
        fs::remove_file(to.join(archive.trim()))?;
        let sum = sh::output(sh::command("sha256sum").arg(&program), MINUTE)?;
        ensure!(sum.starts_with(self.sha256), "it is another file: {sum}");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::write(to.join("stamp"), stamp)?;
        Ok(())
    }
}

impl Wheel {
    /// What is in it, into `to`, unless it is there. The stamp comes last.
    fn unpack(&self, to: &Path) -> Result<()> {
        let lines = |between: &str| -> String {
            let packages = self.packages.iter();
            let lines = packages.map(|(package, sha256)| format!("{package}{between}{sha256}\n"));
            lines.collect()
        };
        let stamp = lines(" ");
        if fs::read_to_string(to.join("stamp")).is_ok_and(|found| found == stamp) {
            return Ok(());
        }
        sh::say(&format!("  fetching {} (PyPI)", self.name));
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        fs::create_dir_all(to)?;
        // The hashes make pip ask for these very files, and wheels they have to be: nothing of them is run.
        let wanted = to.join("wanted");
        fs::write(&wanted, lines(" --hash=sha256:"))?;
        let mut pip = sh::command(PYTHON);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps"])
            .args(["--require-hashes", "--only-binary=:all:"])
            .args(["--root-user-action=ignore", "--target"])
            .arg(to)
            .arg("-r")
            .arg(&wanted);
        sh::run(&mut pip, 10 * MINUTE)?;
        fs::remove_file(wanted)?;
        fs::write(to.join("stamp"), stamp)?;
        Ok(())
    }
}

impl Fixture {
    fn wrap(&self, dir: &Path) -> Result<()> {
        let root = dir.join("root");
        let env = apt::environment(&root);
        let join = |quote: &str, end: &str| -> String {
            env.iter()
                .map(|(key, value)| format!("{key}={quote}{value}{quote}{end}"))
                .collect()
        };
        fs::write(dir.join("env"), join("", "\n"))?;
        fs::create_dir(dir.join("bin"))?;
        for (name, file, ..) in self.programs {
            let path = dir.join("bin").join(name);
            let real = root.join(file);
            let script = format!(
                "#!/bin/sh\n{}exec '{}' \"$@\"\n",
                join("'", " "),
                real.display()
            );
            fs::write(&path, script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    fn check(&self, dir: &Path) -> Result<()> {
        for (name, _, args, want) in self.programs {
            let mut sh = sh::command("sh");
            sh.args(["-c", "exec \"$@\" 2>&1", "sh"])
                .arg(dir.join("bin").join(name))
                .args(*args);
            let said = sh::output(&mut sh, 30 * SECOND)?;
            ensure!(
                said.contains(want),
                "{}/bin/{name} is not with {want} but says: {said}",
                dir.display()
            );
        }
        Ok(())
    }
}
