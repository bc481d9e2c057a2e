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
	"encoding/json"
	"errors"
	"fmt"
	"net"
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

// connect connects to a server for good: when it goes away it is waited for.
func (c *Connection) connect(srv *server.Server, name string) (*nats.Conn, error) {
	opts := []nats.Option{nats.Name(name), nats.MaxReconnects(-1), nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond), nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(3),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})} // what a server that is away costs is waited for
	if c.Token != "" {
		opts = append(opts, nats.Token(c.Token))
	}
	if c.Creds != "" {
		opts = append(opts, nats.UserCredentials(c.Creds))
	}
	if srv != nil {
		opts = append(opts, nats.InProcessServer(srv))
	} else {
		opts = append(opts, nats.RetryOnFailedConnect(true))
	}
	nc, err := nats.Connect(c.URL, opts...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.URL, err)
	}
	return nc, nil
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
