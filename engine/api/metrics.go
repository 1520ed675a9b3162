package api

import (
	"context"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/reload"
	"github.com/sensor-engine/engine/specs"
)

// metrics returns the handler of /metrics. Everything is read from the
// engine's own counters when it is asked for: an event costs nothing extra.
func (s *server) metrics() func(http.ResponseWriter, *http.Request) error {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{s.e}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	h := promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
	return func(w http.ResponseWriter, r *http.Request) error {
		h.ServeHTTP(w, r)
		return nil
	}
}

// collector reads an engine. All labels are names from specs or words of the
// engine, so their number is bounded.
type collector struct{ e *engine.Engine }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("engine_"+name, help, labels, nil)
}

// The metrics.
var (
	descBuild        = desc("build_info", "The version of the program; always 1.", "version", "goversion")
	descReady        = desc("ready", "1 when the engine does its whole work.")
	descBusOK        = desc("bus_ok", "1 when events can be stored.")
	descBytes        = desc("stream_bytes", "Size of a stream.", "stream")
	descMaxBytes     = desc("stream_max_bytes", "Limit of a stream's size; 0 for none.", "stream")
	descRecords      = desc("stream_records", "Records in a stream.", "stream")
	descUp           = desc("source_up", "1 when the source does its work.", "source", "event", "type")
	descRestarts     = desc("source_restarts_total", "Failures after which the source was started again.", "source", "event")
	descEvents       = desc("source_events_total", "Events of a source by what became of them: stored, duplicate, refused, filtered.", "source", "event", "result")
	descIntake       = desc("source_intake_errors_total", "Events whose filter asked for something missing (filter-missing) or failed (filter-failed), which are not stored, and those stored as they came because their id, type, data or labels could not be computed (unshaped).", "source", "event", "reason")
	descLimited      = desc("source_limited_total", "Events that the rate limit refused or held back.", "source", "event")
	descSourceLag    = desc("source_lag_seconds", "How far a source is behind its producer or schedule, where it knows.", "source", "event")
	descLast         = desc("source_last_event_timestamp_seconds", "When the source stored its last event.", "source", "event")
	descPosition     = desc("fold_position", "Sequence of the last event that was evaluated.")
	descCovered      = desc("fold_checkpoint", "Sequence of the last event under the checkpoint.")
	descLag          = desc("fold_lag_seconds", "How long the oldest event that is not yet evaluated has been stored.")
	descFailing      = desc("fold_failing", "1 when something keeps the fold from working.")
	descUnmatched    = desc("events_unmatched_total", "Events no sensor wanted.")
	descMatched      = desc("sensor_matched_total", "Events a sensor wanted.", "sensor")
	descFired        = desc("sensor_fired_total", "Firings of a sensor's triggers.", "sensor")
	descSuperseded   = desc("sensor_superseded_total", "Waiting events that a newer one replaced.", "sensor")
	descExpired      = desc("sensor_expired_total", "Waiting events that were given up.", "sensor")
	descDebounced    = desc("sensor_debounced_total", "What held again before the quiet time of a trigger was over, which does not fire.", "sensor")
	descSkipped      = desc("sensor_skipped_total", "Later steps of workflows that do not fire, and fan-outs without items.", "sensor")
	descSuppressed   = desc("sensor_suppressed_total", "Firings within a trigger's cooldown, which call nothing.", "sensor")
	descEvicted      = desc("sensor_evicted_total", "Correlation keys that were given up because the sensor kept more than its limits allow.", "sensor")
	descKeys         = desc("sensor_keys", "Correlation keys with state.", "sensor")
	descState        = desc("sensor_state_bytes", "What the state of a sensor counts, payloads not included.", "sensor")
	descSensorPaused = desc("sensor_paused", "1 while a sensor is paused, by who paused it: person or watchdog.", "sensor", "by")
	descBehind       = desc("sensor_behind_events", "How many sequences of EVENTS a sensor that is paused or catches up is behind the fold.", "sensor")
	descQuarantines  = desc("sensor_quarantines_total", "How often the watchdog paused a sensor.", "sensor")
	descErrors       = desc("sensor_errors_total", "Expressions that asked for what is missing, or failed.", "sensor", "kind")
	descCalls        = desc("trigger_calls_total", "Calls of a trigger's function by how they ended.", "sensor", "trigger", "result")
	descRetried      = desc("trigger_retries_total", "Calls that will be repeated.", "sensor", "trigger")
	descDuration     = desc("trigger_duration_seconds", "Time of the calls.", "sensor", "trigger")
	descRunning      = desc("trigger_running", "Calls that run at the moment.", "sensor", "trigger")
	descWaiting      = desc("trigger_waiting", "Jobs that wait in memory.", "sensor", "trigger")
	descKeyLimited   = desc("trigger_limited", "Jobs that wait for the rate of their key, in memory or parked.", "sensor", "trigger")
	descPaused       = desc("trigger_paused", "1 while the breaker of the trigger is open, 0 while it is closed; only of triggers with a breaker.", "sensor", "trigger")
	descParked       = desc("trigger_parked", "Jobs that wait on the bus, for a retry or for their turn.", "sensor", "trigger", "reason")
	descRequests     = desc("endpoint_requests_total", "Requests of an endpoint by the status of the answer; 499 is that of clients who went away.", "endpoint", "status")
	descInFlight     = desc("endpoint_in_flight", "Requests of an endpoint that are being served.", "endpoint")
	descEndpointUp   = desc("endpoint_up", "1 when the endpoint is served.", "endpoint")
	descLetters      = desc("dead_letters", "Jobs that were given up and are kept.", "sensor", "trigger")
	descDied         = desc("trigger_dead_total", "Jobs that were given up.", "sensor", "trigger")
	descRunsDropped  = desc("runs_dropped_total", "Runs the history could not take.")
	descGeneration   = desc("reload_generation", "How often a changed set of specs was applied.")
	descReloaded     = desc("reload_last_success_timestamp_seconds", "When a changed set of specs was applied last.")
	descRefused      = desc("reload_last_refused_timestamp_seconds", "When an edit was last refused, in whole or in part; 0 for never.")
	descFailed       = desc("reload_failed", "1 when the last reload could not be applied.")
	descProblems     = desc("spec_problems", "Problems in the specs at the moment.", "severity")
	descResources    = desc("resources", "Resources by their state.", "kind", "state")
	descAlarms       = desc("alarms", "Alarms that need a person.")
)

// Describe sends all descriptions.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descBuild, descReady, descBusOK, descBytes, descMaxBytes, descRecords, descUp, descRestarts, descEvents, descIntake, descLimited, descSourceLag, descLast, descPosition,
		descCovered, descLag, descFailing, descUnmatched, descMatched, descFired, descSuperseded, descExpired, descSuppressed, descDebounced, descSkipped, descEvicted, descKeys, descState, descErrors,
		descSensorPaused, descBehind, descQuarantines, descCalls,
		descRetried, descDuration, descRunning, descWaiting, descKeyLimited, descPaused, descParked, descRequests, descInFlight, descEndpointUp, descLetters, descDied, descRunsDropped, descGeneration,
		descReloaded, descRefused, descFailed, descProblems, descResources, descAlarms,
	} {
		ch <- d
	}
}

// Collect reads the engine. What the bus does not answer in time is left out.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	st := c.e.Status(ctx)
	gauge(descBuild, 1, st.Version, runtime.Version())
	gauge(descReady, truth(st.Ready))
	gauge(descBusOK, truth(st.Bus.OK))
	gauge(descPosition, float64(st.Fold.Folded))
	gauge(descCovered, float64(st.Fold.Covered))
	gauge(descFailing, truth(st.Fold.Error != ""))
	counter(descUnmatched, st.Fold.Unmatched)
	if lag, err := c.e.Lag(ctx); err == nil {
		gauge(descLag, lag.Seconds())
	}
	gauge(descGeneration, float64(st.Reload.Generation))
	gauge(descReloaded, unix(st.Reload.Applied))
	gauge(descRefused, unix(st.Reload.Refused))
	gauge(descFailed, truth(st.Reload.Error != ""))
	gauge(descAlarms, float64(len(st.Alarms)))

	problems := map[specs.Severity]int{specs.Error: 0, specs.Warning: 0}
	for _, d := range st.Problems {
		problems[d.Severity]++
	}
	for severity, n := range problems {
		gauge(descProblems, float64(n), string(severity))
	}
	resources := map[[2]string]int{}
	for _, k := range specs.Kinds() {
		for _, state := range []reload.State{reload.OK, reload.Stale, reload.Removing, reload.Rejected} {
			resources[[2]string{string(k), string(state)}] = 0
		}
	}
	for _, r := range st.Resources {
		resources[[2]string{string(r.Kind), r.State}]++
		for _, ev := range r.Events {
			gauge(descUp, truth(ev.State == engine.UnitRunning), r.Name, ev.Name, ev.Type)
			counter(descRestarts, uint64(ev.Restarts), r.Name, ev.Name)
			counter(descEvents, ev.Stored, r.Name, ev.Name, "stored")
			counter(descEvents, ev.Duplicates, r.Name, ev.Name, "duplicate")
			counter(descEvents, ev.Refused, r.Name, ev.Name, "refused")
			counter(descEvents, ev.Intake.Filtered, r.Name, ev.Name, "filtered")
			counter(descIntake, ev.Intake.FilterMissing, r.Name, ev.Name, "filter-missing")
			counter(descIntake, ev.Intake.FilterFailed, r.Name, ev.Name, "filter-failed")
			counter(descIntake, ev.Intake.Unshaped, r.Name, ev.Name, "unshaped")
			counter(descLimited, ev.Intake.Limited, r.Name, ev.Name)
			gauge(descSourceLag, ev.Lag, r.Name, ev.Name)
			gauge(descLast, unix(ev.Last), r.Name, ev.Name)
		}
		if ep := r.Endpoint; ep != nil {
			gauge(descEndpointUp, truth(ep.State == engine.UnitRunning), r.Name)
			gauge(descInFlight, float64(ep.InFlight), r.Name)
			for status, n := range ep.Answers {
				counter(descRequests, n, r.Name, strconv.Itoa(status))
			}
		}
		if sn := r.Sensor; sn != nil {
			counter(descMatched, sn.Matched, r.RunsAs)
			counter(descFired, sn.Fired, r.RunsAs)
			counter(descSuperseded, sn.Superseded, r.RunsAs)
			counter(descExpired, sn.Expired, r.RunsAs)
			counter(descSuppressed, sn.Suppressed, r.RunsAs)
			counter(descDebounced, sn.Debounced, r.RunsAs)
			counter(descSkipped, sn.Skipped, r.RunsAs)
			counter(descEvicted, sn.Evicted, r.RunsAs)
			gauge(descKeys, float64(sn.Keys), r.RunsAs)
			gauge(descState, float64(sn.Bytes), r.RunsAs)
			counter(descQuarantines, sn.Quarantines, r.RunsAs)
			by, behind := fold.Pauser(""), uint64(0)
			if b := r.Behind; b != nil {
				behind = b.Events
				if b.Paused != nil {
					by = b.Paused.By
				}
			}
			gauge(descBehind, float64(behind), r.RunsAs)
			for _, who := range []fold.Pauser{fold.ByPerson, fold.ByWatchdog} {
				gauge(descSensorPaused, truth(by == who), r.RunsAs, string(who))
			}
			counter(descErrors, sn.Missing, r.RunsAs, "missing")
			counter(descErrors, sn.Failed, r.RunsAs, "failed")
		}
	}
	for key, n := range resources {
		gauge(descResources, float64(n), key[0], key[1])
	}
	c.triggers(ctx, ch, gauge, counter)
	counter(descRunsDropped, c.e.Jobs().DroppedRuns())

	b := c.e.Bus()
	for name, log := range map[string]bus.Log{"events": b.Events(), "jobs": b.Jobs(), "parked": b.Parked(), "dlq": b.DeadLetters(), "runs": b.Runs(), "failed-runs": b.FailedRuns()} {
		if info, err := log.Info(ctx); err == nil {
			gauge(descBytes, float64(info.Bytes), name)
			gauge(descMaxBytes, float64(info.MaxBytes), name)
			gauge(descRecords, float64(info.Records), name)
		}
	}
}

// triggers reads the queues of the triggers.
func (c *collector) triggers(ctx context.Context, ch chan<- prometheus.Metric, gauge func(*prometheus.Desc, float64, ...string), counter func(*prometheus.Desc, uint64, ...string)) {
	letters, err := c.e.Jobs().DeadLetters(ctx)
	known := err == nil
	for _, t := range c.e.Jobs().Status() {
		sn, tr := t.Ref.Sensor, t.Ref.Trigger
		counter(descCalls, t.Stats.Succeeded.Load(), sn, tr, "succeeded")
		counter(descCalls, t.Stats.Failed.Load(), sn, tr, "failed")
		counter(descRetried, t.Stats.Retried.Load(), sn, tr)
		counter(descDied, t.Stats.Dead.Load(), sn, tr)
		gauge(descRunning, float64(t.Running), sn, tr)
		gauge(descWaiting, float64(t.Waiting), sn, tr)
		gauge(descKeyLimited, float64(t.Limited), sn, tr)
		switch t.Breaker {
		case "":
		case jobs.BreakerClosed:
			gauge(descPaused, 0, sn, tr)
		default:
			gauge(descPaused, 1, sn, tr)
		}
		gauge(descParked, float64(t.Overflow), sn, tr, "overflow")
		gauge(descParked, float64(t.Retries), sn, tr, "retry")
		buckets := make(map[float64]uint64, len(jobs.Bounds))
		var n uint64
		for i := range t.Stats.Buckets {
			n += t.Stats.Buckets[i].Load()
			if i < len(jobs.Bounds) {
				buckets[jobs.Bounds[i]] = n
			}
		}
		ch <- prometheus.MustNewConstHistogram(descDuration, n, time.Duration(t.Stats.Busy.Load()).Seconds(), buckets, sn, tr)
		if known {
			gauge(descLetters, float64(letters[t.Ref]), sn, tr)
			delete(letters, t.Ref)
		}
	}
	// Those of triggers that are no longer there count as well.
	for ref, n := range letters {
		gauge(descLetters, float64(n), ref.Sensor, ref.Trigger)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
