//go:build !nonats

package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/store"
)

// Options says how to coordinate a run.
type Options struct {
	Connection        // of a server that is there already; without a URL one is started in this process
	Listen     string // where that is reached, HOST:PORT; "": by workers in this process alone
	Run        string // the run's identity: store.Dir.ID
	Values     store.Shared
	// Build and Tier are the program's version and the processor's instructions: a worker's must be the same.
	Build, Tier string
	Command     []byte               // what workers are told before there is a job
	AckWait     time.Duration        // 0: DefaultAckWait
	Log         func(message string) // told of workers that come and go; may be nil
}

// tries is how often a unit may fail before the run does.
const tries = 3

// Coordinator is the engine.Engine of a run.
type Coordinator struct {
	opt      Options
	subjects subjects
	srv      *server.Server // in this process; else nil
	dir      string         // of srv, removed at the end
	nc       *nats.Conn
	js       jetstream.JetStream
	refused  chan struct{} // closed when the server denies what a run needs
	refuse   func()        // closes it

	mu      sync.Mutex // guards what follows
	job     []byte
	jobID   string
	places  engine.Places
	workers map[string]*peer
	pending map[string]*pendingUnit
	results map[string]result
	failed  error // the run cannot go on
	over    *welcome
	joined  bool          // a worker has come since units were queued
	changed chan struct{} // has a value when something of this has changed
}

// peer is a worker.
type peer struct {
	since time.Time
	seen  time.Time
	alive bool
	unit  string
	done  int
}

// pendingUnit is a unit without a value.
type pendingUnit struct {
	unit  engine.Unit
	at    string // the worker in whose queue it is; "": in that of all
	seq   uint64 // of its message in the stream
	fails int
	// reported is a report whose value is not seen here yet, as file systems that machines share may take some seconds.
	reported *report
	since    time.Time
}

// result is the first value of a unit.
type result struct{ digest, worker string }

// New starts a coordinator.
func New(ctx context.Context, opt Options) (*Coordinator, error) {
	if opt.AckWait == 0 {
		opt.AckWait = DefaultAckWait
	}
	if opt.Log == nil {
		opt.Log = func(string) {}
	}
	c := &Coordinator{opt: opt, subjects: runSubjects(opt.Run), workers: map[string]*peer{}, pending: map[string]*pendingUnit{},
		results: map[string]result{}, changed: make(chan struct{}, 1), refused: make(chan struct{})}
	c.refuse = sync.OnceFunc(func() { close(c.refused) })
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.shutdown())
	}
	return c, nil
}

func (c *Coordinator) start(ctx context.Context) (err error) {
	if c.opt.URL == "" {
		if c.dir, err = os.MkdirTemp("", "llmq-nats-*"); err != nil {
			return err
		}
		if c.srv, err = serve(c.opt.Listen, c.opt.Token, c.dir); err != nil {
			return err
		}
	}
	ctx, giveUp := context.WithCancel(ctx) // what is denied has no answer
	defer giveUp()
	if c.nc, err = c.opt.connect(c.srv, "llmq", func(err error) { c.denied(err); giveUp() }); err != nil {
		return err
	}
	if c.js, err = jetstream.New(c.nc); err != nil {
		return err
	}
	c.js.DeleteStream(ctx, c.subjects.stream()) // of a coordinator before this one, whose units are not asked for any more
	if err := c.createStream(ctx); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		return cmp.Or(c.failed, fmt.Errorf("%s: JetStream: %w", c.opt.Where(), err))
	}
	if _, err := c.nc.Subscribe(c.subjects.hello(), c.onHello); err != nil {
		return err
	}
	if _, err := c.nc.Subscribe(c.subjects.done(), c.onDone); err != nil {
		return err
	}
	return c.nc.FlushTimeout(30 * time.Second)
}

// denied ends the run, as the server does not allow what it needs.
func (c *Coordinator) denied(err error) {
	c.mu.Lock()
	c.failed = cmp.Or(c.failed, err)
	c.mu.Unlock()
	c.refuse()
	c.wakeUp()
}

func (c *Coordinator) createStream(ctx context.Context) error {
	_, err := c.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: c.subjects.stream(), Subjects: []string{c.subjects.units()},
		Retention: jetstream.WorkQueuePolicy, Storage: jetstream.MemoryStorage})
	return err
}

// Address is where workers reach the server in this process; "" if it does not listen.
func (c *Coordinator) Address() string {
	if c.srv == nil || c.opt.Listen == "" {
		return ""
	}
	return c.srv.ClientURL()
}

// Local returns how a worker in this process connects.
func (c *Coordinator) Local() Worker {
	return Worker{Connection: c.opt.Connection, Run: c.opt.Run, Build: c.opt.Build, srv: c.srv}
}

// End tells workers that the run is over, why if it has failed, and lets go of everything. A run that was interrupted is
// not over: then they wait for the next coordinator.
func (c *Coordinator) End(failed error, interrupted bool) error {
	if !interrupted {
		c.mu.Lock()
		c.over = &welcome{Over: true}
		if failed != nil {
			c.over.Failed = failed.Error()
		}
		over := encode(c.over)
		c.mu.Unlock()
		c.nc.Publish(c.subjects.wake(), over)
		c.nc.FlushTimeout(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		c.js.DeleteStream(ctx, c.subjects.stream())
		cancel()
	}
	return c.shutdown()
}

func (c *Coordinator) shutdown() error {
	if c.nc != nil {
		c.nc.Close()
	}
	if c.srv != nil {
		c.srv.Shutdown()
		c.srv.WaitForShutdown()
	}
	if c.dir != "" {
		return os.RemoveAll(c.dir)
	}
	return nil
}

// Begin implements engine.Engine.
func (c *Coordinator) Begin(_ context.Context, job []byte) error {
	sum := sha256.Sum256(job)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.job, c.jobID = job, hex.EncodeToString(sum[:8])
	return nil
}

// Machines implements engine.Engine.
func (c *Coordinator) Machines() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.alive())
}

// Do implements engine.Engine.
func (c *Coordinator) Do(ctx context.Context, units []engine.Unit) error {
	missing, err := engine.Missing(c.opt.Values, units)
	if err != nil || len(missing) == 0 {
		return err
	}
	c.mu.Lock()
	for _, u := range missing {
		c.pending[u.Name] = &pendingUnit{unit: u}
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		clear(c.pending)
		c.mu.Unlock()
	}()
	if err := c.publish(ctx, missing); err != nil {
		return err
	}
	tick := time.NewTicker(c.opt.AckWait / beats)
	defer tick.Stop()
	for {
		c.mu.Lock()
		left, failed, joined := len(c.pending), c.failed, c.joined
		c.joined = false
		c.mu.Unlock()
		switch {
		case failed != nil:
			return failed
		case left == 0:
			return nil
		}
		if joined {
			if err := c.share(ctx); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.changed:
		case <-tick.C:
			if err := c.check(ctx); err != nil {
				return err
			}
		}
	}
}

// retry is where a unit is that has failed, until the next check.
const retry = "\x00retry"

// publish queues units, for the workers that are there now.
func (c *Coordinator) publish(ctx context.Context, units []engine.Unit) error {
	c.mu.Lock()
	to := c.places.Assign(units, c.alive())
	c.joined = false
	c.mu.Unlock()
	return c.queue(ctx, units, to)
}

// queue queues units for the workers that are to do them.
func (c *Coordinator) queue(ctx context.Context, units []engine.Unit, to []string) error {
	c.mu.Lock()
	names := make([]string, 0, len(units))
	var messages []*nats.Msg
	for i, u := range units {
		p := c.pending[u.Name]
		if p == nil {
			continue
		}
		p.at = to[i]
		subject := c.subjects.any()
		if to[i] != "" {
			subject = c.subjects.of(to[i])
		}
		names = append(names, u.Name)
		messages = append(messages, &nats.Msg{Subject: subject, Data: encode(task{c.jobID, u})})
	}
	c.mu.Unlock()
	for i, m := range messages {
		seq, err := c.send(ctx, m)
		if err != nil {
			return err
		}
		c.mu.Lock()
		if p := c.pending[names[i]]; p != nil {
			p.seq = seq
		}
		c.mu.Unlock()
	}
	return c.nc.Publish(c.subjects.wake(), nil)
}

// share gives a worker that has come its share of the units of keys that others have in their queues. What a worker is at stays, as far as
// it has said, and so does the first of its queue. One that has just been begun may be done twice, which does not matter.
func (c *Coordinator) share(ctx context.Context) error {
	c.mu.Lock()
	var queued []*pendingUnit
	for _, p := range c.pending {
		if p.unit.Key != "" && p.at != retry && p.reported == nil {
			queued = append(queued, p)
		}
	}
	slices.SortFunc(queued, func(a, b *pendingUnit) int { return cmp.Compare(a.seq, b.seq) })
	units := make([]engine.Unit, len(queued))
	for i, p := range queued {
		units[i] = p.unit
	}
	type move struct {
		unit engine.Unit
		seq  uint64
		to   string
	}
	var moves []move
	begun := map[string]bool{} // units, and queues whose first has been met
	for _, w := range c.workers {
		begun[w.unit] = w.unit != ""
	}
	for i, to := range c.places.Assign(units, c.alive()) {
		p := queued[i]
		queue := c.subjects.of(p.at)
		if begun[queue] && !begun[p.unit.Name] && to != p.at {
			moves = append(moves, move{p.unit, p.seq, to})
		}
		begun[queue] = true
	}
	c.mu.Unlock()
	if len(moves) == 0 {
		return nil
	}
	attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stream, err := c.js.Stream(attempt, c.subjects.stream())
	if err != nil {
		c.shareLater()
		return cmp.Or(ctx.Err(), c.hopeless()) // a server that is away is waited for
	}
	moved, to := make([]engine.Unit, 0, len(moves)), make([]string, 0, len(moves))
	for _, m := range moves {
		// A server that was started again has other messages under these numbers.
		message, err := stream.GetMsg(attempt, m.seq)
		if err == nil && bytes.Equal(message.Data, encode(task{c.jobID, m.unit})) {
			err = stream.DeleteMsg(attempt, m.seq)
		}
		if err == nil || errors.Is(err, jetstream.ErrMsgNotFound) {
			moved, to = append(moved, m.unit), append(to, m.to)
		} else { // it would be done twice
			c.shareLater()
		}
	}
	if len(moved) == 0 {
		return cmp.Or(ctx.Err(), c.hopeless())
	}
	return c.queue(ctx, moved, to)
}

// shareLater has share called once more, at the next tick.
func (c *Coordinator) shareLater() {
	c.mu.Lock()
	c.joined = true
	c.mu.Unlock()
}

// send puts a message into the stream, whose number there it returns, and waits for a server that is away.
func (c *Coordinator) send(ctx context.Context, m *nats.Msg) (seq uint64, err error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		answered := make(chan error, 1)
		go func() {
			ack, err := c.js.PublishMsg(attempt, m)
			if err == nil {
				seq = ack.Sequence
			}
			answered <- err
		}()
		select {
		case err = <-answered:
		case <-c.refused: // what is denied has no answer
			cancel()
			err = <-answered
		}
		cancel()
		if err == nil {
			return seq, nil
		}
		if err := c.hopeless(); err != nil {
			return 0, err
		}
		if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) { // a server that was started again
			c.createStream(ctx)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// hopeless says why the server will never take what this run asks of it; nil if it may be away for a while.
func (c *Coordinator) hopeless() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil && c.nc.IsClosed() { // after refusals, of which no answer came
		c.failed = c.opt.explain(cmp.Or(c.nc.LastError(), nats.ErrConnectionClosed))
	}
	return c.failed
}

// alive lists the workers that are there, in order.
func (c *Coordinator) alive() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(c.workers)) {
		if c.workers[name].alive {
			names = append(names, name)
		}
	}
	return names
}

// check gives the units of workers that have fallen silent to others, those that have failed to anybody, and those of a stream
// that is gone to a new one.
func (c *Coordinator) check(ctx context.Context) error {
	c.mu.Lock()
	var gone []string
	for name, p := range c.workers {
		if p.alive && time.Since(p.seen) > c.opt.AckWait {
			p.alive = false
			gone = append(gone, name)
		}
	}
	for _, p := range c.pending {
		if p.reported != nil {
			c.note(p.reported)
		}
	}
	var again []engine.Unit
	for _, p := range c.pending {
		if w := c.workers[p.at]; p.at == retry || w != nil && !w.alive {
			again = append(again, p.unit)
		}
	}
	c.mu.Unlock()
	for _, name := range gone {
		c.opt.Log(fmt.Sprintf("%s is silent: others take its work", name))
	}
	attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stream, err := c.js.Stream(attempt, c.subjects.stream())
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound): // the server has been started again
		if err := c.createStream(attempt); err != nil {
			return nil // the next time
		}
		c.mu.Lock()
		again = again[:0]
		for _, p := range c.pending {
			again = append(again, p.unit)
		}
		c.mu.Unlock()
	case err != nil:
		return cmp.Or(ctx.Err(), c.hopeless()) // a server that is away is waited for
	default:
		for _, name := range gone {
			stream.Purge(attempt, jetstream.WithPurgeSubject(c.subjects.of(name)))
		}
	}
	if len(again) == 0 {
		return nil
	}
	slices.SortFunc(again, func(a, b engine.Unit) int { return int(min(max(b.Size-a.Size, -1), 1)) })
	return c.publish(ctx, again)
}

func (c *Coordinator) wakeUp() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *Coordinator) onHello(m *nats.Msg) {
	var h hello
	if err := json.Unmarshal(m.Data, &h); err != nil {
		return
	}
	m.Respond(encode(c.greet(&h)))
}

func (c *Coordinator) greet(h *hello) *welcome {
	if h.Build != c.opt.Build {
		return &welcome{Refused: fmt.Sprintf("the run is done by llmq %s, this one is %s", c.opt.Build, h.Build)}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over != nil {
		return c.over
	}
	p := c.workers[h.Worker]
	if p == nil {
		p = &peer{}
		c.workers[h.Worker] = p
	}
	if !p.alive {
		c.opt.Log(fmt.Sprintf("%s is there", h.Worker))
		p.since = time.Now()
		c.joined = true
		c.wakeUp()
	}
	p.seen, p.alive, p.unit, p.done = time.Now(), true, h.Unit, h.Done
	w := &welcome{Tier: c.opt.Tier, AckWait: c.opt.AckWait, Command: c.opt.Command, JobID: c.jobID}
	if h.Job != c.jobID {
		w.Job = c.job
	}
	return w
}

func (c *Coordinator) onDone(m *nats.Msg) {
	var r report
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return
	}
	c.mu.Lock()
	over := c.over != nil
	if !over {
		c.note(&r)
		if p := c.workers[r.Worker]; p != nil {
			if p.unit == r.Unit { // it may have begun another
				p.unit = ""
			}
			p.done = max(p.done, r.Done)
		}
	}
	c.mu.Unlock()
	m.Respond(encode(receipt{over}))
	c.wakeUp()
}

// note takes a report.
func (c *Coordinator) note(r *report) {
	p := c.pending[r.Unit]
	if r.Failed != "" {
		if p == nil {
			return // somebody else has done it
		}
		if p.fails++; p.fails == tries {
			c.failed = fmt.Errorf("%s on %s: %s", r.Unit, r.Worker, r.Failed)
		}
		p.at = retry
		return
	}
	first, known := c.results[r.Unit]
	if !known {
		if p == nil {
			return // of a layer that is done, by a coordinator before this one
		}
		// It may have been made before this coordinator was started.
		if digest, err := c.opt.Values.Digest(r.Unit); err == nil {
			first, known = result{digest, "an earlier worker"}, true
		}
	}
	switch {
	case !known && p.reported == nil:
		p.reported, p.since = r, time.Now()
		return
	case !known:
		if time.Since(p.since) > 4*c.opt.AckWait {
			c.failed = fmt.Errorf("%s on %s: is done, and not in the work folder: do all machines see the same?", r.Unit, r.Worker)
		}
		return
	case first.digest != r.Digest:
		c.failed = &engine.DifferenceError{Unit: r.Unit, First: first.worker, Second: r.Worker}
		return
	}
	if _, ok := c.results[r.Unit]; !ok {
		c.results[r.Unit] = result{r.Digest, r.Worker}
	}
	if p != nil {
		c.places.Note(p.unit.Key, r.Worker)
	}
	delete(c.pending, r.Unit)
}

// Standing is what a worker does.
type Standing struct {
	Name  string
	Alive bool
	Since time.Time // it came, or came back
	Unit  string    // that it is at work on; "" if it waits
	Done  int       // units
}

// Workers lists the workers that there have been.
func (c *Coordinator) Workers() (list []Standing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.workers)) {
		p := c.workers[name]
		list = append(list, Standing{name, p.alive, p.since, p.unit, p.done})
	}
	return list
}
