package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/bus/lock"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/api"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/listen"
	"github.com/sensor-engine/engine/engine/secrets"
	sourcetypes "github.com/sensor-engine/engine/sources/all"
	functionkinds "github.com/sensor-engine/engine/triggers/all"
)

// runFlags are the settings of an engine.
type runFlags struct {
	data, listen, api                                                         string
	bus, busCreds, busCA, busCert, busKey, prefix                             string
	replicas                                                                  int
	durability, logFormat, logLevel                                           string
	strict                                                                    bool
	busWait, removalGrace, poll, maxLag, grace, eventsAge, runsAge, failedAge durationFlag
	token, tokenFile                                                          string
	hosts                                                                     []string
	events, jobs, parked, dead, runs, failedRuns, state, payload              sizeFlag
}

// catalog is what specs can use.
func catalog() engine.Catalog {
	return engine.Catalog{Sources: sourcetypes.All(), Functions: functionkinds.All()}
}

func (e *env) runVerb() *cobra.Command {
	f := &runFlags{
		removalGrace: durationFlag(5 * time.Second), poll: durationFlag(10 * time.Second),
		busWait: durationFlag(10 * time.Second),
		maxLag:  durationFlag(10 * time.Second), grace: durationFlag(10 * time.Second), eventsAge: durationFlag(7 * 24 * time.Hour),
		events: 10 << 30, jobs: 4 << 30, parked: 4 << 30, dead: 1 << 30, runs: 1 << 30, failedRuns: 256 << 20, runsAge: durationFlag(7 * 24 * time.Hour), failedAge: durationFlag(30 * 24 * time.Hour), state: 4 << 30,
		durability: string(jetstream.DurabilityOS), logFormat: "text", logLevel: "info",
	}
	cmd := &cobra.Command{
		Use:   "run [PATH…]",
		Short: "Run the engine on files and directories of specs",
		Long: `Runs what the specs in the given files and directories (default: the current
directory) say, and follows their changes: what changed is applied at once, a
mistake leaves the last good version running and says where it is.

SIGINT or SIGTERM stop it: no new events, calls on their way may end. A second
signal ends it at once; nothing is lost by that. SIGHUP reads the files again.`,
		Example: `  engine run examples/quickstart
  engine run ./specs --data /var/lib/engine --log-format json
  engine run ./specs --bus nats://nats:4222 --bus-creds engine.creds --bus-replicas 3`,
		RunE: func(cmd *cobra.Command, paths []string) error {
			if len(paths) == 0 {
				paths = []string{"."}
			}
			return e.run(cmd.Context(), f, paths)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.data, "data", ".engine", "directory of everything the engine keeps; one engine per directory")
	fs.StringVar(&f.listen, "listen", "127.0.0.1:12000", "address where webhooks arrive")
	fs.StringVar(&f.api, "api", "127.0.0.1:8180", "address of the API, /metrics, /healthz and /readyz")
	fs.StringVar(&f.token, "api-token", "", "token that clients of the API must present; needed when --api is not a loopback address; better given by its variable or --api-token-file")
	fs.StringVar(&f.tokenFile, "api-token-file", "", "file that holds the token of the API")
	fs.StringSliceVar(&f.hosts, "api-hosts", nil, "further host names under which the API is asked")
	fs.StringVar(&f.bus, "bus", "", "URL of an existing NATS server with JetStream, several joined with commas; default: embedded in --data")
	fs.StringVar(&f.busCreds, "bus-creds", "", "credentials file for --bus")
	fs.StringVar(&f.busCA, "bus-ca", "", "PEM file of the authorities that may sign the certificate of --bus")
	fs.StringVar(&f.busCert, "bus-cert", "", "PEM file of the client certificate for --bus")
	fs.StringVar(&f.busKey, "bus-key", "", "PEM file of the key of --bus-cert")
	fs.StringVar(&f.prefix, "bus-prefix", "", "prefix of stream names and subjects, so that several engines share one account")
	fs.Var(&f.busWait, "bus-wait", "how long to wait for --bus at the start")
	fs.IntVar(&f.replicas, "bus-replicas", 1, "copies of each stream on an external cluster, 1 to 5")
	fs.Var(&choiceFlag{&f.durability, []string{string(jetstream.DurabilityOS), string(jetstream.DurabilityFsync)}}, "durability", "embedded bus: what an acknowledged event survives: os, a crash of the engine; fsync, also a power cut, at a price")
	fs.Var(&f.payload, "max-payload", "largest event in bytes with its headers; default: 8MiB, or more when a webhook's maxBody asks for it")
	fs.Var(&f.events, "events-max-bytes", "size of the log of events; above 80 % the oldest are removed")
	fs.Var(&f.eventsAge, "events-max-age", "age at which events are removed; 0 for never")
	fs.Var(&f.jobs, "jobs-max-bytes", "size of the queue of jobs")
	fs.Var(&f.parked, "parked-max-bytes", "size of the store of jobs that wait for a retry or a slow function")
	fs.Var(&f.dead, "dlq-max-bytes", "size of the store of dead letters")
	fs.Var(&f.runs, "runs-max-bytes", "size of the history of runs; the oldest are dropped")
	fs.Var(&f.runsAge, "runs-max-age", "age at which runs leave the history; 0 for never")
	fs.Var(&f.failedRuns, "failed-runs-max-bytes", "size of what is kept of runs that failed, once more, so that they outlive those that succeeded")
	fs.Var(&f.failedAge, "failed-runs-max-age", "age at which runs that failed are dropped; 0 for never")
	fs.Var(&f.state, "state-max-bytes", "size of the state of sensors, cursors and accepted specs")
	fs.Var(&f.removalGrace, "removal-grace", "how long a resource that is no longer in the files keeps running")
	fs.Var(&f.poll, "poll", "how often the files are looked at without a notification")
	fs.Var(&f.maxLag, "max-lag", "how far the evaluation of events may be behind while /readyz says ready")
	fs.Var(&f.grace, "grace", "how long calls may take to end at a stop")
	fs.BoolVar(&f.strict, "strict", false, "specs with errors make /readyz fail")
	fs.Var(&choiceFlag{&f.logFormat, []string{"text", "json"}}, "log-format", "form of the log on standard error")
	fs.Var(&choiceFlag{&f.logLevel, []string{"debug", "info", "warn", "error"}}, "log-level", "least level that is logged")
	share(fs)
	return cmd
}

// run runs one engine until ctx ends or a signal comes.
func (e *env) run(ctx context.Context, f *runFlags, paths []string) (err error) {
	masker := &secrets.Masker{}
	defer func() { err = masker.MaskError(err) }()
	log := e.logger(f, masker)
	respectMemory(e.lookup)
	token, err := f.apiToken()
	if err != nil {
		return err
	}
	masker.Add(token)
	f.api = strings.TrimSuffix(strings.TrimPrefix(f.api, "http://"), "/") // ENGINE_API serves clients too
	for flag, addr := range map[string]string{"--listen": f.listen, "--api": f.api} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return usagef("%s %q is not an address such as 127.0.0.1:12000: %v", flag, addr, err)
		}
	}
	if !api.Loopback(f.api) && token == "" {
		return usagef("--api %s can be reached from other machines, so it needs a token: set ENGINE_API_TOKEN or --api-token-file, or use a loopback address", f.api)
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	defer close(ended)
	sigs := listenToSignals()
	defer sigs.ignore()
	go sigs.await(log, stop, e.exit, ended)

	if err := readable(paths); err != nil {
		return err
	}
	held, err := lock.Acquire(f.data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Release()) }()

	cat := catalog()
	// The API comes first: who asks while a large store is read gets an answer.
	front := &front{}
	front.set(api.Starting())
	apiServer, err := listen.Listen(ctx, f.api, front, listen.Options{Flag: "--api", Logger: log})
	if err != nil {
		return err
	}
	defer func() {
		shut, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = apiServer.Shutdown(shut) // what follows live events is cut off
	}()

	loaded, err := cat.Loader().Load(ctx, paths...)
	if err != nil {
		return err
	}
	f.fitPayload(cat, loaded)
	b, err := f.openBus(ctx, log)
	if err != nil {
		return err
	}
	defer func() {
		shut, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, b.Close(shut))
	}()

	eng := engine.New(engine.Options{
		Bus: b, Catalog: cat, Paths: paths, Listen: f.listen, Logger: log, LookupEnv: e.lookup, Masker: masker,
		RemovalGrace: time.Duration(f.removalGrace), Poll: time.Duration(f.poll), Grace: time.Duration(f.grace), MaxLag: time.Duration(f.maxLag),
		Retention: fold.Retention{MaxAge: time.Duration(f.eventsAge), HighWater: 0.8},
		Strict:    f.strict, Version: e.version, Data: filepath.Join(f.data, "functions"),
	})
	streams, endStreams := context.WithCancel(ctx)
	defer endStreams()
	front.set(api.New(eng, api.Options{
		Addr: apiServer.Addr(), Hosts: f.hosts, Token: token, Types: cat.Types(), Logger: log, Done: streams.Done(),
	}))
	forget, err := announce(f.data, apiServer.Addr(), token)
	if err != nil {
		return err
	}
	defer forget()
	log.Info("engine starts", "version", e.version, "data", f.data, "listen", f.listen, "api", "http://"+apiServer.Addr())
	go hints(ctx, eng, cat, loaded, log)
	go sigs.reload(ctx, eng, log)
	err = eng.Run(ctx)
	if err == nil {
		log.Info("engine stopped")
	}
	return err
}

// logger logs to standard error, through the masker.
func (e *env) logger(f *runFlags, m *secrets.Masker) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(f.logLevel)) // one of the flag's choices
	o := &slog.HandlerOptions{Level: level}
	w := m.Writer(e.stderr)
	if f.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// apiToken is the token of the API, "" for none.
func (f *runFlags) apiToken() (string, error) {
	if f.tokenFile == "" {
		return f.token, nil
	}
	if f.token != "" {
		return "", usagef("--api-token and --api-token-file are both given")
	}
	b, err := os.ReadFile(f.tokenFile)
	if err != nil {
		return "", fmt.Errorf("token of the API: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("token of the API: %s is empty", f.tokenFile)
	}
	return token, nil
}

// readable finds paths that are not there before anything is started.
func readable(paths []string) error {
	for _, p := range paths {
		file, err := os.Open(p)
		if err != nil {
			return fmt.Errorf("specs: %w", err)
		}
		_ = file.Close()
	}
	return nil
}

// front is a handler that can be exchanged while it serves.
type front struct{ h atomic.Pointer[http.Handler] }

func (f *front) set(h http.Handler) { f.h.Store(&h) }

// ServeHTTP passes the request on.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*f.h.Load()).ServeHTTP(w, r) }
