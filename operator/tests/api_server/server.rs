//! A real API server on the loopback interface: etcd and kube-apiserver only. Nothing that needs a kubelet or a
//! controller can be tested with it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::http::Request;
use kube::{Client, Config};
use tokio::sync::{Mutex, MutexGuard};

const TOKEN: &str = "admin-token-of-a-test";

/// Held by the test that runs: tests would compete for the cores and the loopback addresses of their nodes.
static TURN: Mutex<()> = Mutex::const_new(());

/// A running API server. Dropping it stops the processes and deletes their files.
pub(crate) struct Server {
    processes: Vec<Child>,
    folder: PathBuf,
    pub(crate) client: Client,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            drop(process.kill());
            drop(process.wait());
        }
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// Returns the folder with the binaries from `KUBERNETES_BIN`.
#[expect(clippy::disallowed_methods, reason = "a test is configured by its environment")]
pub(crate) fn binaries() -> PathBuf {
    let folder = std::env::var("KUBERNETES_BIN").unwrap_or_default();
    assert!(!folder.is_empty(), "set KUBERNETES_BIN to a folder with etcd, kube-apiserver and helm");
    folder.into()
}

impl Server {
    pub(crate) async fn start(binaries: &Path) -> Self {
        let turn = TURN.lock().await;
        let folder = std::env::temp_dir().join(format!("covey-api-server-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).unwrap();
        let [clients, peers, secure] = free_ports();
        let etcd_url = format!("http://127.0.0.1:{clients}");
        let peer_url = format!("http://127.0.0.1:{peers}");
        let etcd = Command::new(binaries.join("etcd"))
            .args(["--data-dir", &folder.join("etcd").to_string_lossy()])
            .args(["--unsafe-no-fsync", "--log-level", "error"])
            .args(["--listen-client-urls", &etcd_url, "--advertise-client-urls", &etcd_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .stdout(log(&folder, "etcd"))
            .stderr(log(&folder, "etcd"))
            .spawn()
            .unwrap();
        let apiserver = api_server(binaries, &folder, &etcd_url, secure);
        let mut config = Config::new(format!("https://127.0.0.1:{secure}").parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(TOKEN.to_owned().into());
        config.default_namespace = "default".into();
        // As in `run`: a refused eviction must not be repeated within a pass.
        config.default_retry = false;
        let client = Client::try_from(config).unwrap();
        let mut server = Self { processes: vec![etcd, apiserver], folder, client, _turn: turn };
        server.await_ready().await;
        server
    }

    /// Returns the folder with the logs, among them `audit.log`.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    async fn await_ready(&mut self) {
        let mut last = String::new();
        for _ in 0..300 {
            let request = http_get("/readyz");
            match self.client.request_text(request).await {
                Ok(_) => return,
                Err(error) => last = error.to_string(),
            }
            let ended = self.processes.iter_mut().any(|process| process.try_wait().is_ok_and(|code| code.is_some()));
            if ended {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let log = std::fs::read_to_string(self.folder.join("kube-apiserver.log")).unwrap_or_default();
        panic!("the API server did not start: {last}\n{log}");
    }
}

/// Logs every request once, without bodies.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
";

fn http_get(path: &str) -> Request<Vec<u8>> {
    Request::get(path).body(vec![]).unwrap()
}

fn api_server(binaries: &Path, folder: &Path, etcd_url: &str, port: u16) -> Child {
    let (private, public) = (folder.join("sa.key"), folder.join("sa.pub"));
    let pair = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&private, pair.serialize_pem()).unwrap();
    std::fs::write(&public, pair.public_key_pem()).unwrap();
    let tokens = folder.join("tokens.csv");
    std::fs::write(&tokens, format!("{TOKEN},admin,admin,\"system:masters\"\n")).unwrap();
    let policy = folder.join("audit.yaml");
    std::fs::write(&policy, AUDIT_POLICY).unwrap();
    Command::new(binaries.join("kube-apiserver"))
        .args(["--etcd-servers", etcd_url, "--bind-address", "127.0.0.1"])
        // Only announced, never bound or contacted; a loopback address is refused here.
        .args(["--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none"])
        .args(["--secure-port", &port.to_string(), "--cert-dir", &folder.join("certs").to_string_lossy()])
        .args(["--service-account-issuer", "https://kubernetes.default.svc"])
        .args(["--service-account-key-file", &public.to_string_lossy()])
        .args(["--service-account-signing-key-file", &private.to_string_lossy()])
        .args(["--token-auth-file", &tokens.to_string_lossy(), "--authorization-mode", "RBAC"])
        .args(["--disable-admission-plugins", "ServiceAccount"])
        // OpenShift enables this plugin, which requires more permissions of the operator.
        .args(["--enable-admission-plugins", "OwnerReferencesPermissionEnforcement"])
        .args(["--service-cluster-ip-range", "10.96.0.0/16"])
        .arg("--audit-policy-file")
        .arg(&policy)
        .arg("--audit-log-path")
        .arg(folder.join("audit.log"))
        .stdout(log(folder, "kube-apiserver"))
        .stderr(log(folder, "kube-apiserver"))
        .spawn()
        .unwrap()
}

fn log(folder: &Path, name: &str) -> Stdio {
    let file = std::fs::File::options().create(true).append(true).open(folder.join(format!("{name}.log"))).unwrap();
    Stdio::from(file)
}

/// Returns distinct ports that were free a moment ago. All are bound until all are known, so that they differ.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
