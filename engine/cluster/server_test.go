//go:build !nonats

package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/llmq/llmq/store"
)

// own starts a NATS server as users have one, and returns its HOST:PORT.
func own(t *testing.T, opt server.Options) (address string) {
	t.Helper()
	opt.Host, opt.Port, opt.JetStream, opt.StoreDir, opt.NoLog, opt.NoSigs = "127.0.0.1", server.RANDOM_PORT, true, t.TempDir(), true, true
	srv, err := server.NewServer(&opt)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(time.Minute) {
		t.Fatal("the server does not start")
	}
	return srv.Addr().String()
}

// certificate makes a certificate of 127.0.0.1, and what has clients trust it.
func certificate(t *testing.T) (of, trust *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(parsed)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: roots}
}

// account makes the options of a server that asks for credentials, and files of such: of a user, and of one whom it does not know.
func account(t *testing.T) (opt server.Options, known, unknown string) {
	t.Helper()
	pair := func(kind nkeys.PrefixByte) (nkeys.KeyPair, string) {
		k, err := nkeys.CreatePair(kind)
		if err != nil {
			t.Fatal(err)
		}
		public, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return k, public
	}
	encoded := func(token string, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	operator, operatorID := pair(nkeys.PrefixByteOperator)
	claims := jwt.NewOperatorClaims(operatorID)
	encoded(claims.Encode(operator))
	resolver := &server.MemAccResolver{}
	newAccount := func(jetstream bool) (nkeys.KeyPair, string) {
		key, id := pair(nkeys.PrefixByteAccount)
		a := jwt.NewAccountClaims(id)
		if jetstream {
			a.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
		}
		if err := resolver.Store(id, encoded(a.Encode(operator))); err != nil {
			t.Fatal(err)
		}
		return key, id
	}
	user := func(of nkeys.KeyPair, name string) string {
		key, id := pair(nkeys.PrefixByteUser)
		token := encoded(jwt.NewUserClaims(id).Encode(of))
		seed, err := key.Seed()
		if err != nil {
			t.Fatal(err)
		}
		creds, err := jwt.FormatUserConfig(token, seed)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, creds, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, system := newAccount(false)
	key, _ := newAccount(true)
	stranger, _ := pair(nkeys.PrefixByteAccount)
	return server.Options{TrustedOperators: []*jwt.OperatorClaims{claims}, AccountResolver: resolver, SystemAccount: system},
		user(key, "known.creds"), user(stranger, "unknown.creds")
}

// TestOwnServer: a server of the user's own, with a password, TLS or credentials, does for a run. Whoever comes with something else
// is told so, and ends.
func TestOwnServer(t *testing.T) {
	of, trust := certificate(t)
	jwts, known, unknown := account(t)
	jwts.TLSConfig = of
	password := server.Options{Username: "llmq", Password: "secret"}
	plain, secured := own(t, password), own(t, jwts)
	password.Users = []*server.User{
		{Username: "llmq", Password: "secret"},
		{Username: "guest", Password: "secret", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"llmq.>", "$JS.>"}}}},
	}
	password.Username, password.Password = "", ""
	guarded := own(t, password)
	user := Connection{URL: "nats://llmq:secret@" + plain}
	creds := Connection{URL: "tls://" + secured, Creds: known, tls: trust}
	for _, test := range []struct {
		name  string
		right Connection
		wrong map[string]Connection // by what is said
	}{
		{"user and password", user, map[string]Connection{
			"are token, credentials, user and password": {URL: "nats://llmq:other@" + plain},
			"authorization":               {URL: "nats://" + plain, Token: "secret"},
			"it has no TLS: give nats://": {URL: "tls://llmq:secret@" + plain, tls: trust},
		}},
		{"TLS and credentials", creds, map[string]Connection{
			"are token, credentials, user and password": {URL: creds.URL, Creds: unknown, tls: trust},
			"authorization": {URL: creds.URL, tls: trust},
			"SSL_CERT_FILE": {URL: creds.URL, Creds: known},
			"no such file":  {URL: creds.URL, Creds: known + "x", tls: trust},
		}},
		{"permissions", Connection{URL: "nats://llmq:secret@" + guarded}, map[string]Connection{
			"permissions violation": {URL: "nats://guest:secret@" + guarded},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, err := store.OpenDir(t.TempDir(), []store.Part{{What: "test", Digest: t.Name()}})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			cl := &cluster{t: t, folder: d}
			cl.coordinate(Options{Connection: test.right})
			_, ended := cl.join(Worker{Connection: test.right, Run: d.ID(), Build: "build"}, "w")
			us := units("a", 5)
			if err := cl.c.Do(t.Context(), us); err != nil {
				t.Fatal(err)
			}
			cl.expect(us)
			for want, c := range test.wrong {
				said := func(who string, err error) {
					t.Helper()
					if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(want)) || strings.Contains(err.Error(), "secret@") {
						t.Errorf("%q: %s: %v", want, who, err)
					}
				}
				_, ended := cl.join(Worker{Connection: c, Run: d.ID(), Build: "build"}, "wrong")
				said("worker", <-ended)
				_, err := New(t.Context(), Options{Connection: c, Run: "other", Values: d, Build: "build"})
				said("coordinator", err)
			}
			if err := cl.c.End(nil, false); err != nil {
				t.Error(err)
			}
			if err := <-ended; err != nil {
				t.Errorf("the worker ends with %v", err)
			}
		})
	}
}

// TestDenied: a run ends when its server lets it begin, and not hand out units.
func TestDenied(t *testing.T) {
	d, err := store.OpenDir(t.TempDir(), []store.Part{{What: "test", Digest: t.Name()}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	at := own(t, server.Options{Users: []*server.User{
		{Username: "mute", Password: "secret", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"llmq.*.unit.>"}}}},
	}})
	cl := &cluster{t: t, folder: d}
	user := Connection{URL: "nats://mute:secret@" + at}
	cl.coordinate(Options{Connection: user})
	cancel, ended := cl.join(Worker{Connection: user, Run: d.ID(), Build: "build"}, "w")
	if err := cl.c.Do(t.Context(), units("a", 2)); err == nil || !strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
		t.Errorf("Do: %v", err)
	}
	cancel()
	<-ended
	cl.c.End(nil, true)
}

// TestAllowed: a run needs no more of a server than docs/many-machines.md says.
func TestAllowed(t *testing.T) {
	d, err := store.OpenDir(t.TempDir(), []store.Part{{What: "test", Digest: t.Name()}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	doc, err := os.ReadFile("../../docs/many-machines.md")
	if err != nil {
		t.Fatal(err)
	}
	list := func(after string) []string {
		_, rest, _ := strings.Cut(string(doc), after)
		list, _, ok := strings.Cut(rest, "]")
		if !ok {
			t.Fatalf("docs/many-machines.md has no %q", after)
		}
		return strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(", \"\n", r) })
	}
	at := own(t, server.Options{Users: []*server.User{{Username: "llmq", Password: "secret", Permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Allow: list("publish = [")}, Subscribe: &server.SubjectPermission{Allow: list("subscribe = [")}}}}})
	cl := &cluster{t: t, folder: d}
	user := Connection{URL: "nats://llmq:secret@" + at}
	cl.coordinate(Options{Connection: user})
	cl.joined(Worker{Connection: user, Run: d.ID(), Build: "build"})
}

// TestWaiting: a worker that comes first says what it waits for: the server, then the coordinator.
func TestWaiting(t *testing.T) {
	cl := start(t)
	if err := cl.c.End(nil, true); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := taken.Addr().String()
	taken.Close()
	said := make(chan string, 100)
	w := Worker{Connection: Connection{URL: "nats://u:secret@" + address}, Run: cl.folder.ID(), Build: "build", Log: func(s string) { said <- s }}
	cancel, ended := cl.join(w, "w")
	if got := <-said; !strings.Contains(got, "waiting: nats://u:xxxxx@"+address) {
		t.Errorf("without a server it says %q", got)
	}
	cancel()
	<-ended
	w.URL = "nats://" + own(t, server.Options{})
	cancel, ended = cl.join(w, "w")
	for got := range said {
		if strings.Contains(got, "has no coordinator") {
			break
		}
	}
	cancel()
	<-ended
}
