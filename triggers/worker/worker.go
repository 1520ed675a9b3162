// Package worker owns processes that wait for calls: a pool that starts them on
// demand and stops them when they are idle, the protocol they speak, what they
// write to their streams, and that a worker that misbehaves hurts its own call
// only. The kinds say what program runs. It must not know languages, configs,
// retries or sensors.
package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
)

// reply is what one call gave.
type reply struct {
	// Payload is the output, JSON.
	Payload []byte
	Events  []triggers.Emission
	Logs    triggers.Logs
}

const (
	// grace is how long a worker may take to end when it is asked to.
	grace = 2 * time.Second
	// maxExcerpt is how much of what a worker wrote an error repeats, in bytes.
	maxExcerpt = 200
	// smallRequest is the size up to which the room for a request is kept.
	smallRequest = 256 << 10
)

// worker is one process.
type worker struct {
	proc *process.Process
	talk protocol
	// in takes requests, answers gives answers through reader.
	in, answers *os.File
	answersFD   int // of answers, as long as the worker is not ended
	reader      *bufio.Reader
	out, err    *stream // out is nil where stdout carries the answers
	kin         *kin
	calls       uint64
	request     []byte
	idleSince   time.Time
	uncalled    bool // it has a place of the gate; the mu of its pool guards it
}

// pipes are the ends of a worker's pipes: its own, then ours.
type pipes struct{ files []*os.File }

func (p *pipes) make() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err == nil {
		p.files = append(p.files, r, w)
	}
	return r, w, err
}

func (p *pipes) close() {
	for _, f := range p.files {
		_ = f.Close()
	}
}

// launch starts the process of a command and makes it ready. mark is an entry
// of its environment that nothing else has. It blocks until the worker is
// ready, has failed, or ctx ends.
func launch(ctx context.Context, cmd *exec.Cmd, hello [][]byte, lines bool, mark string) (*worker, error) {
	var all pipes
	var err error
	open := func() (r, w *os.File) {
		if err == nil {
			r, w, err = all.make()
		}
		return r, w
	}
	theirIn, in := open()
	answers, theirAnswers := open()
	stderr, theirErr := open()
	var stdout, theirOut *os.File
	if !lines {
		stdout, theirOut = open()
	}
	if err != nil {
		all.close()
		return nil, err
	}
	cmd.Stderr = theirErr
	if lines {
		cmd.Stdin, cmd.Stdout = theirIn, theirAnswers
	} else {
		cmd.Stdout, cmd.ExtraFiles = theirOut, []*os.File{theirIn, theirAnswers}
	}
	cmd.Env = append(cmd.Env, mark)
	w := &worker{talk: frames{}, in: in, answers: answers, reader: bufio.NewReaderSize(answers, 16<<10), err: newStream(stderr)}
	if conn, err := answers.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { w.answersFD = int(fd) })
	}
	if lines {
		w.talk = ndjson{}
	} else {
		w.out = newStream(stdout)
	}
	w.proc, err = process.Start(cmd, func() {
		process.Sweep(mark)
		// Who waits for an answer gets what the process still wrote, and no more.
		_ = answers.SetReadDeadline(time.Now().Add(drain))
		_ = in.SetWriteDeadline(time.Now())
	})
	if err != nil {
		all.close()
		text, _ := process.StartError(err, cmd.Dir)
		return nil, errors.New(text)
	}
	for _, f := range []*os.File{theirIn, theirAnswers, theirErr, theirOut} {
		if f != nil {
			_ = f.Close()
		}
	}
	w.err.begin()
	if w.out != nil {
		w.out.begin()
	}
	if err := w.greet(ctx, hello); err != nil {
		w.proc.Kill()
		w.end()
		return nil, err
	}
	w.kin = watchKin(w.proc.Pid())
	return w, nil
}

// drain is how long an answer is awaited whose worker has ended.
const drain = 50 * time.Millisecond

// greet tells a worker what to be and waits until it is.
func (w *worker) greet(ctx context.Context, hello [][]byte) error {
	if len(hello) == 0 {
		return nil
	}
	stop := context.AfterFunc(ctx, w.proc.Kill)
	defer stop()
	for _, h := range hello {
		if _, err := w.in.Write(appendFrame(nil, h)); err != nil {
			return w.died(ctx, err)
		}
	}
	a, err := frames{}.read(w.reader, 0)
	switch {
	case err != nil:
		return w.died(ctx, err)
	case a.err != nil:
		return a.err
	}
	return nil
}

// died explains why a worker did not become ready.
func (w *worker) died(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*protocolError](err); ok {
		return err
	}
	w.proc.Kill()
	<-w.proc.Done()
	if ctx.Err() != nil {
		return errors.New("it did not become ready in time")
	}
	logs := w.take()
	return fmt.Errorf("it %s before it was ready%s", process.Ended(w.proc.State()), excerpt(logs.Stderr))
}

// call makes one call. usable tells whether the worker can take another one;
// when it cannot, its process has ended.
func (w *worker) call(ctx context.Context, r *request) (a reply, usable bool, err error) {
	w.calls++
	spoke, out, stderr := w.look()
	if spoke { // nobody asked it for anything
		w.proc.Kill()
		return reply{}, false, errNotTaken
	}
	if w.calls > 1 {
		w.collect(out, stderr) // written between the calls: it belongs to none
	}
	stop := context.AfterFunc(ctx, w.proc.Kill)
	w.request = w.talk.request(w.request[:0], w.calls, r)
	var got answer
	sent, writeErr := w.in.Write(w.request)
	if cap(w.request) > smallRequest {
		w.request = nil
	}
	got, err = w.talk.read(w.reader, w.calls)
	if err == nil {
		err = writeErr
	}
	interrupted := !stop()
	if err != nil || interrupted {
		w.proc.Kill()
		<-w.proc.Done()
	}
	a = reply{Payload: got.payload, Events: got.events, Logs: w.take()}
	switch {
	case interrupted:
		return reply{Logs: a.Logs}, false, interruption(ctx)
	case writeErr != nil, err != nil && unread(w.in, sent):
		return reply{Logs: a.Logs}, false, errNotTaken
	case err != nil:
		return reply{Logs: a.Logs}, false, w.failure(err, a.Logs)
	case got.err != nil:
		return a, !got.last && !w.kin.grown(), got.err
	}
	return a, !w.kin.grown(), nil
}

// errNotTaken says that the worker has not seen the whole request, so that
// another one may.
var errNotTaken = errors.New("the worker ended before it took the call")

// look asks once what there is to read: spoke tells whether there is an answer,
// or the end of answers, out and err whether there is something in the logs.
func (w *worker) look() (spoke, out, err bool) {
	fds := [3]unix.PollFd{{Fd: int32(w.answersFD), Events: unix.POLLIN}, {Fd: -1}, {Fd: int32(w.err.fd), Events: unix.POLLIN}}
	if w.out != nil {
		fds[1] = unix.PollFd{Fd: int32(w.out.fd), Events: unix.POLLIN}
	}
	for {
		_, e := unix.Poll(fds[:], 0)
		if !errors.Is(e, unix.EINTR) {
			return fds[0].Revents != 0 || w.reader.Buffered() > 0, fds[1].Revents != 0 || e != nil, fds[2].Revents != 0 || e != nil
		}
	}
}

// interruption is the error of a call whose context has ended.
func interruption(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &triggers.Error{Class: triggers.FunctionError, Message: "Function execution exceeded the timeout", Err: ctx.Err()}
	}
	return &triggers.Error{Class: triggers.SystemError, Message: "the call was cancelled", Err: ctx.Err()}
}

// failure explains why there is no answer.
func (w *worker) failure(err error, logs triggers.Logs) error {
	if wrong, ok := errors.AsType[*protocolError](err); ok {
		return triggers.Errorf(triggers.SystemError, "the worker wrote something that is no answer: %s", wrong.text)
	}
	if e, ok := errors.AsType[*triggers.Error](err); ok {
		return e
	}
	return triggers.Errorf(triggers.SystemError, "the worker %s during the call%s", process.Ended(w.proc.State()), excerpt(logs.Stderr))
}

// take returns what the worker wrote to its streams since the last time.
func (w *worker) take() triggers.Logs {
	_, out, err := w.look()
	return w.collect(out, err)
}

// collect is take where it is known in which streams there is something.
func (w *worker) collect(out, err bool) triggers.Logs {
	var l triggers.Logs
	if w.out != nil {
		l.Stdout, l.Truncated = w.out.take(out)
	}
	var cut bool
	l.Stderr, cut = w.err.take(err)
	l.Truncated = l.Truncated || cut
	return l
}

// alive reports whether the process runs.
func (w *worker) alive() bool {
	select {
	case <-w.proc.Done():
		return false
	default:
		return true
	}
}

// end asks the worker to end by closing its input, makes it end after the
// grace, and frees what belongs to it. It blocks until the process is gone.
func (w *worker) end() {
	_ = w.in.Close()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-w.proc.Done():
	case <-timer.C:
		w.proc.Kill()
		<-w.proc.Done()
	}
	_ = w.answers.Close()
	w.err.close()
	if w.out != nil {
		w.out.close()
	}
	w.kin.close()
}

// excerpt is the last line of a log, fit for one line of another.
func excerpt(log []byte) string {
	line := strings.TrimSpace(strings.ToValidUTF8(string(log[max(0, len(log)-4*maxExcerpt):]), "?"))
	line = strings.TrimSpace(line[strings.LastIndexByte(line, '\n')+1:])
	more := ""
	if len(line) > maxExcerpt {
		// Cut between words: half a secret could not be masked any more.
		line, more = line[:max(strings.LastIndexByte(line[:maxExcerpt], ' '), 0)], "…"
	}
	line = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, line)
	if line == "" {
		return ""
	}
	return ": " + line + more
}
