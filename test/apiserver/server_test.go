package apiserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/testkit"
)

// server is a kube-apiserver in a lab's control place, with an etcd of its own, and the clients of an administrator.
type server struct {
	folder  string
	host    string
	process *lab.Process
	objects dynamic.Interface
	typed   *kubernetes.Clientset
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

const (
	etcdAddr   = "127.0.0.1:12379" // only for those in the control place
	serverPort = "6443"
	adminToken = "admin"
	auditLog   = "audit.log"
)

// startServer starts both and waits until the API server is ready.
func startServer(t *testing.T, l *lab.Lab) *server {
	t.Helper()
	host, _, err := net.SplitHostPort(lab.StoreAddr())
	if err != nil {
		t.Fatal(err)
	}
	s := &server{folder: t.TempDir(), host: host}
	s.write(t, "tokens", adminToken+",admin,1,system:masters\n")
	s.write(t, "audit.yaml", "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n")
	s.write(t, "accounts.key", accountKey(t))
	start(t, l, l.Control(), "etcd", filepath.Join(binaries(), "tendril"), "lab", "store",
		"--dir", s.path("etcd"), "--listen", etcdAddr, "--publish", "127.0.0.1:12380", "--cluster", "kubernetes", "--unix", s.path("etcd.sock"))
	s.process = start(t, l, l.Control(), "kube-apiserver", filepath.Join(os.Getenv(kubernetesVariable), "kube-apiserver"),
		"--etcd-servers=http://"+etcdAddr, "--bind-address="+host, "--advertise-address="+host, "--secure-port="+serverPort, "--cert-dir="+s.folder,
		"--service-cluster-ip-range=10.96.0.0/16,fd96::/108", "--authorization-mode=RBAC", "--token-auth-file="+s.path("tokens"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+s.path("accounts.key"),
		"--service-account-signing-key-file="+s.path("accounts.key"), "--audit-policy-file="+s.path("audit.yaml"), "--audit-log-path="+s.path(auditLog))
	config := s.config()
	config.Dial = l.Control().Dial
	s.typed, err = kubernetes.NewForConfig(config)
	if err == nil {
		s.objects, err = dynamic.NewForConfig(config)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(s.typed.Discovery()))
	s.await(t)
	return s
}

// await waits until the API server is ready.
func (s *server) await(t *testing.T) {
	t.Helper()
	eventually(t, "the API server", func(ctx context.Context) error {
		if !s.process.Alive() {
			t.Fatalf("the API server has ended:\n%s", testkit.LastLines(s.process.Output(), logLines))
		}
		_, err := s.typed.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// pause takes the API server away, for all who ask it; it returns what brings it back.
func (s *server) pause(t *testing.T) (back func()) {
	t.Helper()
	if err := s.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	back = sync.OnceFunc(func() {
		if err := s.process.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(back) // else it could not be ended in order
	return back
}

func (s *server) path(name string) string { return filepath.Join(s.folder, name) }

func (s *server) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(s.path(name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// accountKey makes the key that tokens of service accounts are signed with, as PEM.
func accountKey(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

// config leads an administrator to the server. It believes the certificate that the server made for itself.
func (s *server) config() *rest.Config {
	return &rest.Config{
		Host: "https://" + net.JoinHostPort(s.host, serverPort), BearerToken: adminToken, QPS: 500, Burst: 500,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}, // it is made anew by each server, in the same network namespace
	}
}

// kubeconfig writes a file that leads a service account to the server.
func (s *server) kubeconfig(t *testing.T, namespace, account string) string {
	t.Helper()
	token, err := s.typed.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s.writeKubeconfig(t, account, token.Status.Token)
}

// writeKubeconfig writes a file that leads whoever has a token to the server.
func (s *server) writeKubeconfig(t *testing.T, account, token string) string {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: s.config().Host, CertificateAuthority: s.path("apiserver.crt")}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	path := s.path(account + ".kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// resource finds where objects of a kind are.
func (s *server) resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := s.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) { // it may have been defined since
		s.mapper.Reset()
		mapping, err = s.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return s.objects.Resource(mapping.Resource), nil
	}
	return s.objects.Resource(mapping.Resource).Namespace(object.GetNamespace()), nil
}

// apply sends an object as `kubectl apply --server-side` does, and its status, if it has one, to where the server takes it.
func (s *server) apply(ctx context.Context, object *unstructured.Unstructured) error {
	resource, err := s.resource(object)
	if err != nil {
		return err
	}
	options := metav1.ApplyOptions{FieldManager: "test"}
	if _, err := resource.Apply(ctx, object.GetName(), object, options); err != nil {
		return err
	}
	if object.Object["status"] != nil {
		_, err = resource.ApplyStatus(ctx, object.GetName(), object, options)
	}
	return err
}

// mustApply waits for the object's kind or namespace if they are not there yet.
func (s *server) mustApply(t *testing.T, object *unstructured.Unstructured) {
	t.Helper()
	eventually(t, "the server to take "+nameOf(object), func(ctx context.Context) error {
		err := s.apply(ctx, object)
		if err != nil && !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
			t.Fatalf("%s: %v", nameOf(object), err)
		}
		return err
	})
}

func nameOf(object *unstructured.Unstructured) string {
	return object.GetKind() + " " + object.GetName()
}

// get reads an object as it is now.
func (s *server) get(t *testing.T, object *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	resource, err := s.resource(object)
	if err != nil {
		t.Fatal(err)
	}
	now, err := resource.Get(t.Context(), object.GetName(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// remove deletes an object at once. Nobody here would end a pod, or what is in a namespace.
func (s *server) remove(t *testing.T, object *unstructured.Unstructured) {
	t.Helper()
	resource, err := s.resource(object)
	if err == nil {
		now := int64(0)
		err = resource.Delete(t.Context(), object.GetName(), metav1.DeleteOptions{GracePeriodSeconds: &now})
	}
	if err == nil && object.GetKind() == "Namespace" {
		namespace, _ := s.typed.CoreV1().Namespaces().Get(t.Context(), object.GetName(), metav1.GetOptions{})
		namespace.Spec.Finalizers = nil
		_, err = s.typed.CoreV1().Namespaces().Finalize(t.Context(), namespace, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatalf("%s %s: %v", object.GetKind(), object.GetName(), err)
	}
}

// columns asks as `kubectl get` does, and returns the names of the columns and the cells of the first row.
func (s *server) columns(t *testing.T, path string) (header, cells []string) {
	t.Helper()
	raw, err := s.typed.RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var table metav1.Table
	if err := json.Unmarshal(raw, &table); err != nil || len(table.Rows) == 0 {
		t.Fatalf("%s: %v, %d rows", path, err, len(table.Rows))
	}
	for i, column := range table.ColumnDefinitions {
		header, cells = append(header, column.Name), append(cells, fmt.Sprint(table.Rows[0].Cells[i]))
	}
	return header, cells
}

// request is what the audit log says of one.
type request struct {
	Verb           string
	RequestURI     string
	SourceIPs      []string
	User           struct{ Username string } // empty: the server did not know
	UserAgent      string
	ResponseStatus struct{ Code int }
}

// requests reads the audit log.
func (s *server) requests(t *testing.T) (all []request) {
	t.Helper()
	raw, err := os.ReadFile(s.path(auditLog))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var one request
		if err := json.Unmarshal([]byte(line), &one); err == nil { // the last line may not be whole yet
			all = append(all, one)
		}
	}
	return all
}

// manifests reads the objects of a YAML text.
func manifests(t *testing.T, text []byte) (objects []*unstructured.Unstructured) {
	t.Helper()
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if err == io.EOF {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}
