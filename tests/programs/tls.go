// Go's TLS as programs use it. What the other end writes down is the truth.
//
// usage: tls get URL SIZE WORKERS REQUESTS
//
//	Posts bodies of up to SIZE bytes to URL and reads the same back, by WORKERS at once, each of which has
//	a client of its own. HTTP/2 if the server has it.
//
// usage: tls frames PORT ROUNDS SIZE CONNECTIONS
//
//	Frames as server.py knows them. Each call is made by a goroutine of its own, whose small stack is nearly
//	used up before it, so that it has to grow inside.
//
// usage: tls again URL SIZE CONNECTIONS
//
//	One request for each of so many connections, one after the other, whose objects the collector takes
//	away in between.
//
// usage: tls together PORT WRITERS SIZE
//
//	One frame, written by all WRITERS to one connection at once.
//
// usage: tls serve DIR NAME CERT KEY CONNECTIONS
//
//	A server that gives back what is put or posted and ends after so many connections. Its port is in
//	DIR/NAME.port.
package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// The answer to a signal of the parent's death belongs to a thread.
func init() {
	runtime.LockOSThread()
	syscall.RawSyscall(syscall.SYS_PRCTL, 1, uintptr(syscall.SIGKILL), 0)
	seconds, err := strconv.Atoi(os.Getenv("E2E_SECONDS"))
	if err != nil {
		seconds = 60
	}
	time.AfterFunc(time.Duration(seconds)*time.Second, func() { os.Exit(99) })
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Panic(err)
	}
	return value
}

func check(err error) {
	if err != nil {
		log.Panic(err)
	}
}

func number(at int) int { return must(strconv.Atoi(os.Args[at])) }

func random(size int, seed int64) []byte {
	body := make([]byte, size)
	rand.New(rand.NewSource(seed)).Read(body)
	return body
}

func main() {
	switch os.Args[1] {
	case "get":
		get(os.Args[2], number(3), number(4), number(5))
	case "frames":
		frames(os.Args[2], number(3), number(4), number(5))
	case "again":
		again(os.Args[2], number(3), number(4))
	case "together":
		together(os.Args[2], number(3), number(4))
	case "serve":
		serve(os.Args[2], os.Args[3], os.Args[4], os.Args[5], number(6))
	}
}

func all(count int, do func(int)) {
	var group sync.WaitGroup
	for i := 0; i < count; i++ {
		i := i
		group.Add(1)
		go func() {
			defer group.Done()
			do(i)
		}()
	}
	group.Wait()
}

var insecure = &tls.Config{InsecureSkipVerify: true}

func get(url string, size, workers, requests int) {
	all(workers, func(worker int) {
		transport := &http.Transport{TLSClientConfig: insecure.Clone(), ForceAttemptHTTP2: true}
		client := &http.Client{Transport: transport}
		for request := 0; request < requests; request++ {
			post(client, url, random(size-request, int64(worker*1000+request)))
		}
		transport.CloseIdleConnections()
	})
}

func again(url string, size, connections int) {
	transport := &http.Transport{TLSClientConfig: insecure.Clone(), DisableKeepAlives: true}
	client := &http.Client{Transport: transport}
	for connection := 0; connection < connections; connection++ {
		post(client, url, random(size-connection, int64(connection)))
		runtime.GC()
	}
}

func post(client *http.Client, url string, sent []byte) {
	answer := must(client.Post(url, "application/octet-stream", bytes.NewReader(sent)))
	received := must(io.ReadAll(answer.Body))
	check(answer.Body.Close())
	if !bytes.Equal(sent, received) {
		log.Panicf("%d bytes came back as %d other ones: %s", len(sent), len(received), answer.Status)
	}
}

// Calls `do` in a goroutine of its own, below so many frames of 64 bytes and more.
func deep(frames int, do func() error) {
	done := make(chan error)
	go func() { done <- below(frames, do) }()
	check(<-done)
}

//go:noinline
func below(frames int, do func() error) error {
	var room [64]byte
	room[frames%64] = byte(frames)
	if frames == 0 {
		return do()
	}
	err := below(frames-1, do)
	runtime.KeepAlive(room)
	return err
}

func dial(port string) *tls.Conn {
	return must(tls.Dial("tcp", "127.0.0.1:"+port, insecure.Clone()))
}

func head(up, down int) []byte {
	var head [16]byte
	binary.BigEndian.PutUint64(head[:8], uint64(up))
	binary.BigEndian.PutUint64(head[8:], uint64(down))
	return head[:]
}

func frames(port string, rounds, size, connections int) {
	all(connections, func(connection int) {
		conn := dial(port)
		from := rand.New(rand.NewSource(int64(connection)))
		for round := 0; round < rounds; round++ {
			up, down := 1+from.Intn(size), 1+from.Intn(size)
			message := append(head(up, down), random(up, int64(round))...)
			for len(message) > 0 {
				piece := 1 + from.Intn(len(message))
				deep(from.Intn(120), func() error {
					_, err := conn.Write(message[:piece])
					return err
				})
				message = message[piece:]
			}
			buffer := make([]byte, 1+from.Intn(size))
			for down > 0 {
				deep(from.Intn(120), func() error {
					if len(buffer) > down {
						buffer = buffer[:down]
					}
					n, err := conn.Read(buffer)
					down -= n
					return err
				})
			}
		}
		check(conn.Close())
	})
}

func together(port string, writers, size int) {
	const pieces = 16
	conn := dial(port)
	must(conn.Write(head(writers*pieces*size, 1)))
	all(writers, func(writer int) {
		for piece := 0; piece < pieces; piece++ {
			must(conn.Write(random(size, int64(writer*pieces+piece))))
		}
	})
	must(io.ReadFull(conn, make([]byte, 1)))
	check(conn.Close())
}

func serve(dir, name, cert, key string, connections int) {
	over := make(chan struct{}, connections)
	server := &http.Server{
		Handler: http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
			body := must(io.ReadAll(request.Body))
			answer.Header().Set("content-length", fmt.Sprint(len(body)))
			must(answer.Write(body))
		}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				over <- struct{}{}
			}
		},
	}
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	port := filepath.Join(dir, name+".port")
	text := fmt.Sprintln(listener.Addr().(*net.TCPAddr).Port)
	check(os.WriteFile(port+".new", []byte(text), 0o600))
	check(os.Rename(port+".new", port))
	go server.ServeTLS(listener, cert, key)
	for ; connections > 0; connections-- {
		<-over
	}
}
