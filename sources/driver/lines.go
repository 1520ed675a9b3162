package driver

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/sensor-engine/engine/specs"
)

// lines reads lines up to a limit.
type lines struct {
	r     *bufio.Reader
	max   int
	whole []byte // of a line longer than the buffer of r
}

func newLines(r io.Reader, limit int) *lines {
	return &lines{r: bufio.NewReaderSize(r, 64<<10), max: limit}
}

// next returns a line without its end, valid until the next call. Of one
// longer than the limit, only the beginning is returned, and cut is true. The
// last line may lack its end; after it the error is io.EOF or another.
func (l *lines) next() (line []byte, cut bool, err error) {
	if cap(l.whole) > 1<<20 {
		l.whole = nil // rare, and not worth keeping
	}
	l.whole = l.whole[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		if err == nil {
			part = part[:len(part)-1]
		}
		if err == nil && len(l.whole) == 0 && !cut && len(part) <= l.max {
			return part, false, nil
		}
		if !cut {
			if len(l.whole)+len(part) > l.max {
				cut = true
				part = part[:l.max-len(l.whole)]
			}
			l.whole = append(l.whole, part...)
		}
		switch {
		case err == nil:
			return l.whole, cut, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case len(l.whole) > 0:
			return l.whole, cut, nil // the error comes again
		default:
			return nil, false, err
		}
	}
}

// readEvents reads messages, one a line, and stores their events until r ends
// or the context of q does.
func readEvents(r io.Reader, limit specs.Size, q *queue, s *status) {
	in := newLines(r, int(limit))
	for {
		line, cut, err := in.next()
		if err != nil {
			break
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if cut {
			s.refuse(fmt.Sprintf("a line of its stdout is longer than %d bytes; raise maxMessage", int64(limit)), line)
			continue
		}
		evs, err := parse(line)
		if err != nil {
			s.refuse("a line of its stdout is no event: "+err.Error(), line)
			continue
		}
		s.ready()
		for _, ev := range evs {
			ev.Data = bytes.Clone(ev.Data)
			q.put(ev)
		}
		if q.ctx.Err() != nil {
			break
		}
	}
	if err := q.flush(); err != nil {
		s.log.Warn("the last events on the driver's stdout were not stored before it had to end", "error", err)
	}
}

// readLog logs what a driver writes to its stderr until r ends.
func readLog(r io.Reader, s *status) {
	in := newLines(r, 2*maxLogged)
	for {
		line, _, err := in.next()
		if err != nil {
			return
		}
		s.line(line)
	}
}
