package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/reload"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// Status is the state of the engine at one moment.
type Status struct {
	Version   string            `json:"version"`
	Started   time.Time         `json:"started"`
	Ready     bool              `json:"ready"`
	NotReady  []string          `json:"notReady,omitempty"`
	Bus       BusStatus         `json:"bus"`
	Fold      FoldStatus        `json:"fold"`
	Reload    ReloadStatus      `json:"reload"`
	Alarms    []Alarm           `json:"alarms,omitempty"`
	Resources []ResourceStatus  `json:"resources"`
	Problems  specs.Diagnostics `json:"problems,omitempty"`
}

// BusStatus is the state of the bus.
type BusStatus struct {
	OK     bool      `json:"ok"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
}

// FoldStatus is where the fold stands.
type FoldStatus struct {
	// Folded and Covered are sequences of EVENTS: the last one folded and the
	// last one under the checkpoint.
	Folded    uint64 `json:"folded"`
	Covered   uint64 `json:"covered"`
	Unmatched uint64 `json:"unmatched"`
	// Error is why the fold does not work, "" when it does.
	Error string `json:"error,omitempty"`
}

// ResourceStatus is the state of one resource.
type ResourceStatus struct {
	Kind   specs.Kind `json:"kind"`
	Name   string     `json:"name"`
	State  string     `json:"state"`
	Reason string     `json:"reason,omitempty"`
	Place  string     `json:"place"`
	Hash   string     `json:"hash,omitempty"`
	// Until is when a resource that is being removed ends.
	Until  time.Time         `json:"until,omitzero"`
	Labels map[string]string `json:"labels,omitempty"`
	Events []EventStatus     `json:"events,omitempty"`
	Sensor *SensorStatus     `json:"sensor,omitempty"`
	// RunsAs is the name of the sensor as which a Sensor or Subscription runs:
	// the one its jobs, runs and dead letters have.
	RunsAs   string          `json:"runsAs,omitempty"`
	Triggers []TriggerStatus `json:"triggers,omitempty"`
	Endpoint *EndpointStatus `json:"endpoint,omitempty"`
	Function *FunctionStatus `json:"function,omitempty"`
	UsedBy   []string        `json:"usedBy,omitempty"`
	// NotReady is why a Function cannot be called at the moment, or the inline
	// function of a trigger; "" when it can.
	NotReady string `json:"notReady,omitempty"`
	// Trial is there while a new version of a Function has not started, or of the
	// function of a trigger, and the one before goes on.
	Trial *TrialStatus `json:"trial,omitempty"`
	// Behind is where a sensor stands that is paused or catches up, nil when it
	// stands where the fold does.
	Behind *BehindStatus `json:"behind,omitempty"`
}

// BehindStatus is where a sensor stands that is not where the fold stands.
type BehindStatus struct {
	// Position is the last event it has evaluated, Time the log time there.
	Position uint64    `json:"position"`
	Time     time.Time `json:"time,omitzero"`
	// Events is how many sequences of EVENTS the fold is ahead, Removed how many
	// of them are no longer stored.
	Events  uint64 `json:"events"`
	Removed uint64 `json:"removed,omitempty"`
	// From is where it will begin when that has not come yet.
	From specs.From `json:"from,omitempty"`
	// Paused is nil when it catches up.
	Paused *fold.Pause `json:"paused,omitempty"`
}

func behindStatus(b fold.Behind) *BehindStatus {
	return &BehindStatus{Position: b.Position, Time: b.Time, Events: b.Events, Removed: b.Removed, From: b.From, Paused: b.Pause}
}

// EventStatus is the state of one event of an EventSource.
type EventStatus struct {
	Name       string    `json:"name"`
	Type       string    `json:"type"`
	State      UnitState `json:"state"`
	Detail     string    `json:"detail,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	Restarts   int       `json:"restarts,omitempty"`
	Stored     uint64    `json:"stored"`
	Duplicates uint64    `json:"duplicates,omitempty"`
	Refused    uint64    `json:"refused,omitempty"`
	Last       time.Time `json:"last,omitzero"`
	// Intake counts what the event's filter, rate limit and shaping did.
	Intake IntakeStatus `json:"intake,omitzero"`
	// Position is where the source stands, and Lag, in seconds, how far behind
	// it is, where it knows.
	Position string  `json:"position,omitempty"`
	Lag      float64 `json:"lag,omitempty"`
	// Details is what the config tells, for example the next times of a
	// schedule. It is only there when one resource is asked for.
	Details []sources.Detail `json:"details,omitempty"`
}

// IntakeStatus are the counters of an event's intake since the start of the
// engine, as in [SourceStats].
type IntakeStatus struct {
	Filtered      uint64 `json:"filtered,omitempty"`
	FilterMissing uint64 `json:"filterMissing,omitempty"`
	FilterFailed  uint64 `json:"filterFailed,omitempty"`
	Unshaped      uint64 `json:"unshaped,omitempty"`
	Limited       uint64 `json:"limited,omitempty"`
	// Problem is what failed last, "" for nothing.
	Problem string `json:"problem,omitempty"`
}

// SensorStatus are the counters of a sensor since the start of the engine.
type SensorStatus struct {
	Matched    uint64 `json:"matched"`
	Fired      uint64 `json:"fired"`
	Missing    uint64 `json:"missing,omitempty"`
	Failed     uint64 `json:"failed,omitempty"`
	Superseded uint64 `json:"superseded,omitempty"`
	Expired    uint64 `json:"expired,omitempty"`
	Suppressed uint64 `json:"suppressed,omitempty"`
	Debounced  uint64 `json:"debounced,omitempty"`
	Skipped    uint64 `json:"skipped,omitempty"`
	// Evicted is how many correlation keys were given up because the sensor kept
	// more than it may; Keys and Bytes are what it keeps.
	Evicted uint64 `json:"evicted,omitempty"`
	Keys    uint64 `json:"keys,omitempty"`
	Bytes   uint64 `json:"bytes,omitempty"`
	// Quarantines is how often the watchdog paused it.
	Quarantines uint64 `json:"quarantines,omitempty"`
	// Problem is the last expression that failed or missed what it asked for,
	// "" for none.
	Problem string `json:"problem,omitempty"`
}

// TriggerStatus is the state of one trigger.
type TriggerStatus struct {
	// Sensor is there in the status of a Function, which others call: the name
	// of their sensor, _exec for calls by hand, _endpoint for those of Endpoints.
	Sensor   string `json:"sensor,omitempty"`
	Name     string `json:"name"`
	Function string `json:"function"`
	Running  int    `json:"running"`
	Waiting  int    `json:"waiting"`
	Overflow uint64 `json:"overflow,omitempty"`
	Retries  int    `json:"retries,omitempty"`
	// Limited is how many more wait for the rate of their key.
	Limited   int    `json:"limited,omitempty"`
	Succeeded uint64 `json:"succeeded"`
	Failed    uint64 `json:"failed"`
	Dead      uint64 `json:"dead"`
	// Breaker is closed, open or probing, "" when it has none; RetryAt is when
	// the next probe is made while it is open.
	Breaker string    `json:"breaker,omitempty"`
	RetryAt time.Time `json:"retryAt,omitzero"`
}

// FunctionStatus is the state of a Function, whoever calls it.
type FunctionStatus struct {
	Kind string `json:"kind"`
	// Limit is how many of its calls may run at the same time, Running how many
	// do, and Waiting how many are held up by that alone.
	Limit   int `json:"limit"`
	Running int `json:"running"`
	Waiting int `json:"waiting,omitempty"`
	// Processes is how many processes it keeps, 0 for a kind that keeps none.
	Processes int `json:"processes,omitempty"`
}

// Ready reports whether the engine does its whole work; otherwise the reasons
// why not. It blocks on the bus, shortly.
func (e *Engine) Ready(ctx context.Context) (bool, []string) {
	var why []string
	e.mu.Lock()
	if !e.ready {
		why = append(why, "starting")
	}
	if e.o.Strict && (e.decision.Diagnostics.HasErrors() || e.callees.problems().HasErrors()) {
		why = append(why, "specs have errors (--strict)")
	}
	for k, u := range e.units {
		if state, detail, _, _ := u.status(); state != UnitRunning {
			why = append(why, fmt.Sprintf("%s %s is %s: %s", u.what, k, state, detail))
		}
	}
	e.mu.Unlock()
	if h := e.o.Bus.Health(); !h.OK {
		why = append(why, "bus: "+h.Reason)
	}
	if !e.fold.Ready() {
		why = append(why, "the fold is recovering")
	} else if lag, err := e.fold.Lag(ctx); err != nil {
		why = append(why, "the fold's lag is unknown: "+err.Error())
	} else if lag > e.o.MaxLag {
		why = append(why, fmt.Sprintf("the fold is %v behind", lag.Round(time.Millisecond)))
	}
	slices.Sort(why)
	return len(why) == 0, why
}

// Status tells how everything is. It blocks on the bus, shortly.
func (e *Engine) Status(ctx context.Context) Status {
	ready, why := e.Ready(ctx)
	h := e.o.Bus.Health()
	folded, covered := e.fold.Position()
	s := Status{
		Version: e.o.Version, Started: e.start, Ready: ready, NotReady: why,
		Bus:  BusStatus{OK: h.OK, Reason: h.Reason, Since: h.Since},
		Fold: FoldStatus{Folded: folded, Covered: covered, Unmatched: e.fold.Unmatched()},
	}
	if err := e.fold.Failing(); err != nil {
		s.Fold.Error = err.Error()
	}
	triggers, calls := map[string][]TriggerStatus{}, map[string][]TriggerStatus{}
	endpoints := map[string]TriggerStatus{}
	for _, t := range e.pool.Status() {
		ts := TriggerStatus{
			Name: t.Ref.Trigger, Function: t.Function, Running: t.Running, Waiting: t.Waiting, Overflow: t.Overflow, Retries: t.Retries, Limited: t.Limited,
			Succeeded: t.Stats.Succeeded.Load(), Failed: t.Stats.Failed.Load(), Dead: t.Stats.Dead.Load(),
			Breaker: t.Breaker, RetryAt: t.RetryAt,
		}
		if t.Ref.Sensor == jobs.SensorEndpoint {
			endpoints[t.Ref.Trigger] = ts
		}
		triggers[t.Ref.Sensor] = append(triggers[t.Ref.Sensor], ts)
		ts.Sensor = t.Ref.Sensor
		calls[t.Function] = append(calls[t.Function], ts)
	}
	functions, trials := e.pool.Functions(), e.callees.onTrial()
	sensorStats, behind := e.fold.SensorStats(), e.fold.Behind()
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Reload = e.reload
	for _, a := range e.alarms {
		if time.Since(a.Last) > alarmMemory {
			continue
		}
		s.Alarms = append(s.Alarms, a)
	}
	slices.SortFunc(s.Alarms, func(a, b Alarm) int { return cmp.Compare(a.Code, b.Code) })
	s.Problems = append(slices.Clone(e.decision.Diagnostics), e.callees.problems()...).Sort()
	usedBy := map[specs.Ref][]string{}
	for ref, r := range e.applied.Resources {
		for _, u := range r.Uses {
			usedBy[u] = append(usedBy[u], ref.String())
		}
	}
	for _, st := range e.decision.Statuses {
		rs := ResourceStatus{
			Kind: st.Ref.Kind, Name: st.Ref.Name, State: string(st.State), Reason: string(st.Reason), Until: st.Until,
		}
		if st.Detail != "" {
			rs.Reason += ": " + st.Detail
		}
		if r := e.applied.Resources[st.Ref]; r != nil {
			rs.Place, rs.Hash, rs.Labels = fmt.Sprintf("%s:%d", r.Pos.File, r.Pos.Line), r.Hash, r.Metadata.Labels
			switch spec := r.Spec.(type) {
			case *specs.Function:
				f := functions[st.Ref.Name]
				rs.Function = &FunctionStatus{Kind: spec.Call.Kind, Limit: f.Limit, Running: f.Running, Waiting: f.Waiting, Processes: f.Processes}
				rs.Triggers = calls[st.Ref.Name]
				slices.SortFunc(rs.Triggers, func(a, b TriggerStatus) int {
					return cmp.Or(cmp.Compare(a.Sensor, b.Sensor), cmp.Compare(a.Name, b.Name))
				})
				if f.NotReady != nil {
					rs.NotReady = f.NotReady.Error()
				}
				rs.tell(trials[st.Ref.Name], "")
			case *specs.EventSource:
				rs.Events = e.eventStatus(st.Ref.Name, spec)
			case *specs.Endpoint:
				rs.Endpoint = e.endpointStatus(st.Ref.Name, spec)
				if t, ok := endpoints[st.Ref.Name]; ok {
					rs.Triggers = []TriggerStatus{t}
				}
			case *specs.Sensor, *specs.Subscription:
				name, sensor := r.Sensor()
				rs.RunsAs = name
				for _, t := range sensor.Calls() {
					if t.Inline != nil {
						if err := functions[calleeName(st.Ref, t)].NotReady; err != nil {
							rs.NotReady = t.Name + ": " + err.Error()
						}
						rs.tell(trials[calleeName(st.Ref, t)], t.Name)
					}
				}
				if b, ok := behind[name]; ok {
					rs.Behind = behindStatus(b)
				}
				if c, ok := sensorStats[name]; ok {
					st := SensorStatus(c)
					rs.Sensor = &st
				}
				rs.Triggers = triggers[name]
				slices.SortFunc(rs.Triggers, func(a, b TriggerStatus) int { return cmp.Compare(a.Name, b.Name) })
			}
		}
		rs.UsedBy = usedBy[st.Ref]
		slices.Sort(rs.UsedBy)
		s.Resources = append(s.Resources, rs)
	}
	return s
}

// eventStatus is the state of an EventSource's events. mu is held.
func (e *Engine) eventStatus(source string, spec *specs.EventSource) []EventStatus {
	out := make([]EventStatus, 0, len(spec.Events))
	for _, ev := range spec.Events {
		k := unitKey{source, ev.Name}
		es := EventStatus{Name: ev.Name, Type: ev.Type, State: UnitStopped}
		if u := e.units[k]; u != nil {
			es.State, es.Detail, es.Since, es.Restarts = u.status()
		}
		if st := e.stats[k]; st != nil {
			es.Stored, es.Duplicates, es.Refused = st.Stored.Load(), st.Duplicates.Load(), st.Refused.Load()
			if n := st.LastStored.Load(); n > 0 {
				es.Last = time.Unix(0, n)
			}
			es.Intake = IntakeStatus{
				Filtered: st.Filtered.Load(), FilterMissing: st.FilterMissing.Load(), FilterFailed: st.FilterFailed.Load(),
				Unshaped: st.Unshaped.Load(), Limited: st.Limited.Load(),
			}
			if p := st.Problem.Load(); p != nil {
				es.Intake.Problem = *p
			}
			if p := st.Progress.Load(); p != nil {
				es.Position, es.Lag = p.Position, p.Lag.Seconds()
			}
		}
		out = append(out, es)
	}
	return out
}

// Details returns what the configs of an EventSource's running events tell, by
// the name of the event.
func (e *Engine) Details(source string) map[string][]sources.Detail {
	e.mu.Lock()
	asked := map[string]func(time.Time) []sources.Detail{}
	for k, u := range e.units {
		if k.source == source {
			asked[k.event] = u.details
		}
	}
	e.mu.Unlock()
	out := make(map[string][]sources.Detail, len(asked))
	now := time.Now()
	for name, details := range asked {
		out[name] = details(now)
	}
	return out
}

// Resource returns what runs of a resource, or nil.
func (e *Engine) Resource(ref specs.Ref) *specs.Resource {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.applied.Resources[ref]
}

// Pending returns up to limit correlation keys of a sensor that wait for more.
func (e *Engine) Pending(ctx context.Context, sensor string, limit int) ([]fold.Pending, error) {
	return e.fold.Pending(ctx, sensor, limit)
}

// Pause stops the evaluation of a sensor, by the name it runs as, as
// [fold.Dispatcher.Pause] does. What is returned is where it stands then.
func (e *Engine) Pause(ctx context.Context, sensor, reason string) (*BehindStatus, error) {
	if err := e.fold.Pause(ctx, sensor, reason); err != nil {
		return nil, err
	}
	e.log.Info("sensor paused", "sensor", sensor, "reason", reason)
	return behindStatus(e.fold.Behind()[sensor]), nil
}

// Resume lets a paused sensor catch up, as [fold.Dispatcher.Resume] does. What is
// returned is where it stands then, and how many sequences it skipped.
func (e *Engine) Resume(ctx context.Context, sensor string, skip bool) (at *BehindStatus, skipped uint64, err error) {
	skipped, err = e.fold.Resume(ctx, sensor, skip)
	if err != nil {
		return nil, 0, err
	}
	if skip {
		e.log.Warn("sensor resumed without the events since its pause", "sensor", sensor, "skipped", skipped)
	} else {
		e.log.Info("sensor resumed; it catches up", "sensor", sensor)
	}
	if b, ok := e.fold.Behind()[sensor]; ok {
		at = behindStatus(b)
	}
	return at, skipped, nil
}

// Jobs gives access to queues, parked jobs and dead letters.
func (e *Engine) Jobs() *jobs.Pool { return e.pool }

// Decision is what followed from the last read of the files.
func (e *Engine) Decision() reload.Decision {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.decision
}

// Mask hides the values of secrets in use.
func (e *Engine) Mask(b []byte) []byte { return e.o.Masker.Mask(b) }
