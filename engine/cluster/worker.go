//go:build !nonats

package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/store"
)

// Worker takes part in a run.
type Worker struct {
	Connection
	Run    string // the run's identity: store.Dir.ID
	Name   string // of the worker; letters, digits and - alone
	Build  string // of the program
	Values store.Shared
	// Ready is told what the coordinator says of the run, before anything else: an error ends the worker.
	Ready func(tier string, command []byte) error
	Make  engine.Factory
	// Log is told what is waited for, and why; it may be nil.
	Log func(message string)

	srv *server.Server // in this process; else nil

	mute func() bool // for tests: says nothing while it is true
}

// firstLook is how soon a worker that has found nothing looks again, then half as often each time: JetStream acknowledges a unit, upon which
// workers are called, before it tells its consumers, so that a worker may come too early.
const firstLook = time.Millisecond

// errOver ends a worker whose run has ended.
var errOver = errors.New("the run is over")

// working is a Worker at work.
type working struct {
	*Worker
	subjects subjects
	nc       *nats.Conn
	js       jetstream.JetStream
	own, any queue
	cancel   context.CancelCauseFunc
	ackWait  time.Duration // the coordinator's
	wake     chan struct{} // has a value when there may be units

	engine  engine.Worker
	jobID   string
	waiting string // why the worker waits, as it has said

	busy, reports sync.WaitGroup // what says that units are being done, and the report of the last one

	mu   sync.Mutex // guards what follows
	unit string
	done int
}

// Work does units until the run is over, which is no error, or ctx ends. It waits for a coordinator that is not there, or not yet.
func (w Worker) Work(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g := &working{Worker: &w, subjects: runSubjects(w.Run), cancel: cancel, ackWait: DefaultAckWait, wake: make(chan struct{}, 1)}
	g.own = queue{durable: "of-" + w.Name, subject: g.subjects.of(w.Name)}
	g.any = queue{durable: "any", subject: g.subjects.any()}
	if g.Log == nil {
		g.Log = func(string) {}
	}
	var err error
	if g.nc, err = g.connected(ctx); err != nil {
		return err
	}
	defer g.nc.Close()
	if g.js, err = jetstream.New(g.nc); err != nil {
		return err
	}
	if _, err = g.nc.Subscribe(g.subjects.wake(), g.onWake); err != nil {
		return err
	}
	err = g.work(ctx)
	if g.engine != nil {
		err = errors.Join(err, g.engine.Close())
	}
	if errors.Is(context.Cause(ctx), errOver) {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// connected connects to the server once it is there.
func (g *working) connected(ctx context.Context) (*nats.Conn, error) {
	for {
		nc, err := g.connect(g.srv, g.Name, func(err error) { g.cancel(err) })
		if err == nil || !passes(err) {
			return nc, err
		}
		g.waits(err.Error())
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// waits says what is waited for, if that is new.
func (g *working) waits(why string) {
	if g.waiting != why {
		g.waiting = why
		g.Log("waiting: " + why)
	}
}

func (g *working) work(ctx context.Context) error {
	answer, err := g.hello(ctx)
	if err != nil {
		return err
	}
	g.ackWait = max(answer.AckWait, time.Millisecond)
	if g.Ready != nil {
		if err := g.Ready(answer.Tier, answer.Command); err != nil {
			return err
		}
	}
	var beat sync.WaitGroup
	defer beat.Wait()
	defer g.busy.Wait()
	inner, stop := context.WithCancel(ctx)
	defer stop()
	defer g.reports.Wait()
	beat.Go(func() { g.beat(inner) })
	wait := firstLook
	for ctx.Err() == nil {
		m := g.next(ctx)
		if m == nil {
			select {
			case <-ctx.Done():
			case <-g.wake:
				wait = firstLook
			case <-time.After(wait): // what others have left comes without a call
				wait = min(2*wait, time.Second, g.ackWait/beats)
			}
			continue
		}
		wait = firstLook
		if err := g.do(ctx, m); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

func (g *working) onWake(m *nats.Msg) {
	var end welcome
	if len(m.Data) > 0 && json.Unmarshal(m.Data, &end) == nil && end.Over {
		g.end(&end)
	}
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

func (g *working) end(w *welcome) {
	if w.Failed != "" {
		g.cancel(fmt.Errorf("the run has failed: %s", w.Failed))
		return
	}
	g.cancel(errOver)
}

func (g *working) muted() bool { return g.mute != nil && g.mute() }

// hello says that the worker is there, until it is answered.
func (g *working) hello(ctx context.Context) (*welcome, error) {
	for {
		if answer, err := g.say(ctx); answer != nil || err != nil {
			return answer, err
		}
		g.waits(g.Where() + " has no coordinator of the run yet")
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(min(time.Second, g.ackWait/beats)):
		}
	}
}

// say says it once; nil if nobody answers.
func (g *working) say(ctx context.Context) (*welcome, error) {
	g.mu.Lock()
	h := hello{Worker: g.Name, Build: g.Build, Job: g.jobID, Unit: g.unit, Done: g.done}
	g.mu.Unlock()
	attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := g.nc.RequestWithContext(attempt, g.subjects.hello(), encode(h))
	if err != nil {
		if g.nc.IsClosed() { // it is not for a server that is away: one that has come back wants something else
			return nil, g.explain(cmp.Or(g.nc.LastError(), err))
		}
		return nil, nil
	}
	var w welcome
	switch err := json.Unmarshal(m.Data, &w); {
	case err != nil:
		return nil, fmt.Errorf("the coordinator's answer: %w", err)
	case w.Refused != "":
		return nil, fmt.Errorf("refused: %s", w.Refused)
	case w.Over:
		g.end(&w)
		return nil, context.Cause(ctx)
	}
	return &w, nil
}

// beat says now and then that the worker is there.
func (g *working) beat(ctx context.Context) {
	tick := time.NewTicker(g.ackWait / beats)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if g.muted() {
				continue
			}
			if _, err := g.say(ctx); err != nil {
				g.cancel(err)
				return
			}
		}
	}
}

// queue is a queue that the worker takes units from. There is one request for a unit at a time, whose answer is taken whenever it comes: one
// that is late, as the server's processors were at work, is found the next time. A unit whose answer nobody took would be lost until it is
// delivered again.
type queue struct {
	durable, subject string
	known            bool               // by the server, for all that is known
	inbox            *nats.Subscription // of answers; nil: none yet
	reconnects       uint64             // of the connection when inbox was made

	// Guarded by working.mu.
	answers chan *nats.Msg // that have come to inbox
	asked   time.Time      // when a unit was asked for; zero: the answer has come
}

// answerWait is how long an answer is waited for. Tests wait less.
var answerWait = time.Second

// next takes a unit from the worker's own queue, else from that of all; nil if there is none, or no server.
func (g *working) next(ctx context.Context) *nats.Msg {
	attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var own, others *nats.Msg
	var both sync.WaitGroup // at once: an answer may take as long as the server's processors are at work
	both.Go(func() { own = g.fetch(attempt, &g.own) })
	others = g.fetch(attempt, &g.any)
	both.Wait()
	if own == nil {
		return others
	}
	if others != nil {
		others.Nak() // for somebody else
	}
	return own
}

// fetch takes a unit from a queue; nil if there is none, or no answer yet.
func (g *working) fetch(ctx context.Context, q *queue) *nats.Msg {
	if !g.nc.IsConnected() { // requests would wait for the connection, and be answered all at once
		return nil
	}
	if err := g.listen(q); err != nil {
		return nil
	}
	select {
	case m := <-q.answers:
		if isUnit(m) {
			return m
		}
	default:
	}
	if !q.known {
		_, err := g.js.CreateOrUpdateConsumer(ctx, g.subjects.stream(), jetstream.ConsumerConfig{Durable: q.durable, FilterSubject: q.subject,
			AckPolicy: jetstream.AckExplicitPolicy, AckWait: g.ackWait, MaxAckPending: -1, MemoryStorage: true,
			InactiveThreshold: time.Minute + 10*g.ackWait})
		if err != nil {
			return nil
		}
		q.known = true
	}
	g.mu.Lock()
	ask := q.asked.IsZero()
	if ask {
		q.asked = time.Now()
	}
	g.mu.Unlock()
	if ask {
		// Not by package jetstream, which waits for an answer for a second.
		subject := "$JS.API.CONSUMER.MSG.NEXT." + g.subjects.stream() + "." + q.durable
		if err := g.nc.PublishRequest(subject, q.inbox.Subject, []byte(`{"batch":1,"no_wait":true}`)); err != nil {
			return nil
		}
	}
	select {
	case m := <-q.answers:
		switch {
		case isUnit(m):
			return m
		case m.Header.Get("Status") != "404" && m.Header.Get("Status") != "408": // it does not say that there is none: the server may be another one
			q.known = false
		}
	case <-time.After(answerWait):
	case <-ctx.Done():
	}
	return nil
}

// isUnit tells a unit from an answer that there is none.
func isUnit(m *nats.Msg) bool { return m.Header.Get("Status") == "" }

// listen makes an inbox for a queue's answers where there is none, or none that answers may still come to: of what came before a connection
// broke the server may know nothing any more, and what it has not answered in as long as a unit may take to be said to be at work is lost.
func (g *working) listen(q *queue) error {
	n := g.nc.Stats().Reconnects
	g.mu.Lock()
	lost := !q.asked.IsZero() && time.Since(q.asked) > g.ackWait
	g.mu.Unlock()
	if q.inbox != nil && q.reconnects == n && !lost {
		return nil
	}
	if q.inbox != nil {
		q.inbox.Unsubscribe()
	}
	answers := make(chan *nats.Msg, 1)
	g.mu.Lock()
	q.answers, q.asked = answers, time.Time{}
	g.mu.Unlock()
	var err error
	q.known, q.reconnects = false, n
	q.inbox, err = g.nc.Subscribe(g.nc.NewInbox(), func(m *nats.Msg) { g.answered(q, answers, m) })
	return err
}

// answered takes what has come to a queue's inbox. A unit that comes while another is being done goes back, for somebody else.
func (g *working) answered(q *queue, answers chan *nats.Msg, m *nats.Msg) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if answers == q.answers {
		q.asked = time.Time{}
		if !isUnit(m) || g.unit == "" {
			select {
			case answers <- m:
				return
			default:
			}
		}
	}
	if isUnit(m) {
		m.Nak()
	}
}

// do does the unit of a message.
func (g *working) do(ctx context.Context, m *nats.Msg) error {
	var t task
	if err := json.Unmarshal(m.Data, &t); err != nil {
		return fmt.Errorf("a unit: %w", err)
	}
	g.mu.Lock()
	g.unit = t.Unit.Name
	for _, q := range []*queue{&g.own, &g.any} {
		select {
		case late := <-q.answers:
			if isUnit(late) {
				late.Nak()
			}
		default:
		}
	}
	g.mu.Unlock()
	busy, stop := context.WithCancel(ctx)
	g.busy.Go(func() { g.progress(busy, m) })
	r := report{Worker: g.Name, Unit: t.Unit.Name}
	err := g.take(ctx, t.Job)
	if err == nil {
		r.Digest, err = g.engine.Do(ctx, t.Unit)
	}
	if ctx.Err() != nil {
		stop()
		if errors.Is(context.Cause(ctx), errOver) {
			return g.clear(t.Unit.Name)
		}
		return nil // others will have it
	}
	if err != nil {
		r.Failed = err.Error()
	}
	g.mu.Lock()
	g.unit = ""
	if r.Failed == "" {
		g.done++
	}
	r.Done = g.done
	g.mu.Unlock()
	// The next unit begins while this one is being reported.
	g.reports.Wait()
	g.reports.Go(func() {
		defer stop()
		over, answered := g.report(ctx, &r)
		if over || !answered && errors.Is(context.Cause(ctx), errOver) {
			if err := g.clear(t.Unit.Name); err != nil {
				g.cancel(err)
			}
			return
		}
		if answered {
			m.Ack()
		}
	})
	return nil
}

// clear removes what a unit has put out: nothing is to stay of a run that is over.
func (g *working) clear(unit string) error {
	names, err := g.Values.Names()
	if err != nil {
		return err
	}
	return g.Values.Delete(slices.DeleteFunc(names, func(name string) bool {
		return name != unit && !strings.HasPrefix(name, unit+"-part")
	})...)
}

// progress says that a unit is being done, so that nobody else is given it.
func (g *working) progress(ctx context.Context, m *nats.Msg) {
	tick := time.NewTicker(g.ackWait / beats)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if !g.muted() {
				m.InProgress()
			}
		}
	}
}

// take makes the engine's worker for a job, unless it is there.
func (g *working) take(ctx context.Context, job string) error {
	if g.jobID == job {
		return nil
	}
	answer, err := g.hello(ctx)
	if err != nil {
		return err
	}
	if answer.JobID != job {
		return errors.New("is of another job than the coordinator's")
	}
	if g.engine != nil {
		if err := g.engine.Close(); err != nil {
			return err
		}
		g.engine = nil
	}
	w, err := g.Make(ctx, answer.Job)
	if err != nil {
		return err
	}
	g.engine = w
	g.mu.Lock()
	g.jobID = job
	g.mu.Unlock()
	return nil
}

// report reports what has become of a unit, until it is answered.
func (g *working) report(ctx context.Context, r *report) (over, answered bool) {
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		m, err := g.nc.RequestWithContext(attempt, g.subjects.done(), encode(r))
		cancel()
		var answer receipt
		if err == nil && json.Unmarshal(m.Data, &answer) == nil {
			return answer.Over, true
		}
		select {
		case <-ctx.Done():
			return false, false
		case <-time.After(min(time.Second, g.ackWait/beats)):
		}
	}
}
