//go:build !nonats

// Package cluster is an engine.Engine of workers on many machines, which a NATS server connects (nats.io).
//
// A coordinator puts units into a JetStream work queue, largest first: those that have a key into the queue of the worker that is
// to do all of that key, the others into one that all take from. A worker takes a unit when it is idle, says that it is at work
// while it is, puts the unit's value into the store and reports its digest. A unit whose worker falls silent is delivered again.
//
// Nothing that NATS keeps is needed: streams are in memory, and units whose values are in the store are never asked for again.
// So the coordinator, the server, or both may end at any time and be started again; workers wait for that.
package cluster

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/llmq/llmq/engine"
)

// DefaultAckWait is how long a worker may be silent before its units are given to others.
const DefaultAckWait = 30 * time.Second

// beats is how often in that time a worker says that it is there.
const beats = 3

// Connection says how to reach a NATS server.
type Connection struct {
	URL   string // "" for a server in this process
	Token string // "" for none
	Creds string // path of a NATS credentials file; "" for none

	tls *tls.Config // for tests: the authorities that are trusted; nil for those of the system
}

// subjects are those of a run, of which id tells it from others on the same server.
type subjects struct{ id string }

func (s subjects) stream() string          { return "LLMQ_" + s.id }
func (s subjects) hello() string           { return "llmq." + s.id + ".hello" }
func (s subjects) done() string            { return "llmq." + s.id + ".done" }
func (s subjects) wake() string            { return "llmq." + s.id + ".wake" }
func (s subjects) units() string           { return "llmq." + s.id + ".unit.>" }
func (s subjects) any() string             { return "llmq." + s.id + ".unit.any" }
func (s subjects) of(worker string) string { return "llmq." + s.id + ".unit.of." + worker }

// runSubjects shortens a run's identity to what NATS takes for a name.
func runSubjects(run string) subjects { return subjects{run[:min(16, len(run))]} }

// hello is what a worker says of itself, at first and then again and again.
type hello struct {
	Worker string
	Build  string
	Job    string // that it has: jobID
	Unit   string // that it is at work on
	Done   int    // units
}

// welcome is the answer.
type welcome struct {
	Refused string // why the worker cannot take part
	Tier    string // of the processor's instructions that all use
	AckWait time.Duration
	Command []byte // Options.Command
	Job     []byte // where the worker has another, or none
	JobID   string // "" while there is no job
	Over    bool   // the run has ended
	Failed  string // why, if it has not succeeded
}

// task is a unit on its way to a worker.
type task struct {
	Job  string
	Unit engine.Unit
}

// report is what has become of a unit.
type report struct {
	Worker string
	Unit   string
	Digest string
	Failed string // why there is no value
	Done   int    // units, with this one: a report may come twice
}

// receipt answers a report.
type receipt struct{ Over bool }

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own messages
	}
	return b
}

// Where is the server's URL without the password that it may have.
func (c *Connection) Where() string {
	if c.URL == "" {
		return "the NATS server in this process"
	}
	if u, err := url.Parse(c.URL); err == nil {
		return u.Redacted()
	}
	return "the NATS server" // what does not parse may have a password anywhere
}

// connect connects to a server, srv if that is in this process. From then on it is waited for when it goes away. denied is told of
// what it does not allow.
func (c *Connection) connect(srv *server.Server, name string, denied func(error)) (*nats.Conn, error) {
	opts := []nats.Option{nats.Name(name), nats.MaxReconnects(-1), nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond), nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(3),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) { // what a server that is away costs is waited for
				denied(c.explain(err))
			}
		})}
	if c.Token != "" {
		opts = append(opts, nats.Token(c.Token))
	}
	if c.Creds != "" {
		opts = append(opts, nats.UserCredentials(c.Creds))
	}
	if srv != nil {
		opts = append(opts, nats.InProcessServer(srv))
	}
	if c.tls != nil {
		opts = append(opts, nats.Secure(c.tls))
	}
	nc, err := nats.Connect(c.URL, opts...)
	if err != nil {
		return nil, c.explain(err)
	}
	return nc, nil
}

// explain adds to what a server says where it is, and what may help.
func (c *Connection) explain(err error) error {
	help := ""
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		help = ": are token, credentials, user and password those that it wants?"
	case errors.Is(err, nats.ErrSecureConnRequired):
		help = ": it wants TLS: give tls://HOST:PORT"
	case errors.Is(err, nats.ErrSecureConnWanted):
		help = ": it has no TLS: give nats://HOST:PORT"
	case untrusted:
		help = ": SSL_CERT_FILE can name the certificate of an authority of your own"
	}
	return fmt.Errorf("%s: %w%s", c.Where(), err, help)
}

// passes says whether an error of connect may go away by itself, as that of a server that is not there yet.
func passes(err error) bool {
	_, network := errors.AsType[*net.OpError](err)
	_, names := errors.AsType[*net.DNSError](err)
	if network || names || errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	for _, e := range []error{io.EOF, nats.ErrNoServers, nats.ErrTimeout, nats.ErrNoInfoReceived, nats.ErrStaleConnection,
		nats.ErrConnectionClosed, nats.ErrMaxConnectionsExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// CheckListen says what is wrong with a HOST:PORT to listen at: others can reach it, and there is no token that they have to show.
func CheckListen(listen, token string) error {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("%q: no HOST:PORT: %w", listen, err)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%q: %w", listen, err)
	}
	if token == "" && !isLoopback(host) {
		return fmt.Errorf("%s can be reached from other machines: give a secret that workers have to show", listen)
	}
	return nil
}

// serve starts a server in this process. listen is a HOST:PORT where others reach it, "" for nobody. Who is not on this
// machine must show the token.
func serve(listen, token, dir string) (*server.Server, error) {
	opts := &server.Options{ServerName: "llmq", JetStream: true, StoreDir: dir, DontListen: listen == "", NoSigs: true, NoLog: true,
		Authorization: token, MaxPayload: 8 << 20, JetStreamMaxMemory: 1 << 30, JetStreamMaxStore: 1 << 30}
	if listen != "" {
		if err := CheckListen(listen, token); err != nil {
			return nil, err
		}
		host, port, err := net.SplitHostPort(listen)
		if err != nil {
			return nil, err
		}
		p, err := net.LookupPort("tcp", port)
		if err != nil {
			return nil, err
		}
		opts.Host, opts.Port = host, p
		if p == 0 {
			opts.Port = server.RANDOM_PORT
		}
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("the NATS server: %w", err)
	}
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		srv.Shutdown()
		return nil, errors.New("the NATS server does not start: is the port taken?")
	}
	return srv, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}
