// Command go is a server of events to copy: it streams the lines of files, and
// goes on after the last line that the engine stored, however long either of
// the two was away. Each line that is appended becomes an event.
//
//	go run ./examples/generic/go -dir /var/log
package main

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sensor-engine/engine/sources/generic/eventing"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:7070", "address to listen on")
	dir := flag.String("dir", ".", "directory of the files")
	cert := flag.String("cert", "", "PEM file with the certificate; none: plain text")
	key := flag.String("key", "", "PEM file with its key")
	flag.Parse()
	if err := serve(*listen, *dir, *cert, *key, os.Getenv("TOKEN")); err != nil {
		log.Fatal(err)
	}
}

func serve(listen, dir, cert, key, token string) error {
	options := []grpc.ServerOption{
		// Let the engine ask for a sign of life as often as it may want to.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second}),
	}
	if cert != "" {
		tls, err := credentials.NewServerTLSFromFile(cert, key)
		if err != nil {
			return err
		}
		options = append(options, grpc.Creds(tls))
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := grpc.NewServer(options...)
	eventing.RegisterEventingServer(server, &lines{dir: dir, token: token})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, server.Stop) // streams have no end of their own to wait for
	log.Printf("listening on %s", listener.Addr())
	return server.Serve(listener)
}

// lines streams the lines of files in a directory.
type lines struct {
	eventing.UnimplementedEventingServer
	dir, token string
}

// StartEventSource streams the file that the config names, `{file: …}` in the
// spec, from the cursor on, and waits for more lines at its end.
func (l *lines) StartEventSource(req *eventing.EventSource, stream grpc.ServerStreamingServer[eventing.Event]) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	if l.token != "" && subtle.ConstantTimeCompare([]byte(first(md, "authorization")), []byte("Bearer "+l.token)) == 0 {
		return status.Error(codes.Unauthenticated, "the token is missing or wrong")
	}
	var config struct{ File string }
	if err := json.Unmarshal(req.GetConfig(), &config); err != nil || config.File == "" {
		return status.Error(codes.InvalidArgument, "config must name a file: {file: orders.ndjson}")
	}
	file, err := os.OpenInRoot(l.dir, config.File)
	if err != nil {
		return status.Error(codes.NotFound, err.Error())
	}
	defer file.Close()

	// The cursor is the offset behind a line. It is missing the first time.
	offset, err := strconv.ParseInt("0"+first(md, "engine-cursor-bin"), 10, 64)
	if err != nil {
		return status.Error(codes.OutOfRange, "the cursor is not of this server")
	}
	if info, err := file.Stat(); err == nil && info.Size() < offset {
		return status.Error(codes.OutOfRange, config.File+" is shorter than what was read of it: it is another file now")
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	reader, line := bufio.NewReader(file), ""
	for {
		part, err := reader.ReadString('\n')
		line += part
		switch {
		case err == nil:
		case errors.Is(err, io.EOF): // more may come, also of this line
			select {
			case <-stream.Context().Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		default:
			return status.Error(codes.Internal, err.Error())
		}
		id := fmt.Sprintf("%s:%d", config.File, offset)
		offset += int64(len(line))
		// Send waits while the engine does not take more.
		if err := stream.Send(&eventing.Event{
			Payload: []byte(strings.TrimRight(line, "\r\n")),
			Type:    "line", Subject: config.File,
			Id:     id,                            // known again when it is sent twice
			Cursor: strconv.FormatInt(offset, 10), // comes back when the engine connects again
		}); err != nil {
			return err
		}
		line = ""
	}
}

// first returns a value of the request's metadata, "" when it is not there.
func first(md metadata.MD, key string) string {
	if v := md.Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}
