package main

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxLine bounds what is read from a prompt, in bytes.
const maxLine = 16 << 10

// pasteTime is how long a terminal may take between the pieces of one paste.
const pasteTime = 50 * time.Millisecond

// hide keeps a terminal from showing what is typed, until show is called. What
// nobody has read by then is discarded: the rest of a paste is for no other
// question, and for no shell. What is no terminal shows nothing anyhow.
func hide(in *os.File) (show func(), err error) {
	fd := int(in.Fd())
	shown, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}, nil //nolint:nilerr // it is no terminal
	}
	hidden := *shown
	hidden.Lflag = hidden.Lflag&^unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return nil, errors.New("the terminal cannot hide what is typed: give it on standard input")
	}
	return func() {
		discard(in)
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, shown)
	}, nil
}

// discard takes from a terminal what was typed ahead, or is still coming out of
// a paste, and says whether there was any.
func discard(in *os.File) (found bool) {
	fd := int(in.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return false
	}
	raw := *before // so that a line without its end counts too
	raw.Lflag &^= unix.ICANON | unix.ECHO | unix.ECHONL
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if unix.IoctlSetTermios(fd, unix.TCSETS, &raw) != nil {
		return false
	}
	defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }()
	for range 40 { // somebody who goes on typing gets back at last
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(pasteTime.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 || unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH) != nil {
			break
		}
		found = true
	}
	return found
}

// readLine reads one line, or what there is of it, until ctx ends.
func readLine(ctx context.Context, in *os.File) (string, error) {
	line, err := readBytes(ctx, in)
	defer clear(line)
	return string(line), err
}

// readBytes is readLine whose caller wipes the line. It reads no byte beyond:
// the next line may be for another question.
func readBytes(ctx context.Context, in *os.File) ([]byte, error) {
	buf := make([]byte, maxLine)
	for n := range buf {
		more, err := readSome(ctx, in, buf[n:n+1])
		switch {
		case err != nil:
			clear(buf)
			return nil, err
		case more == 0 && n == 0:
			return nil, io.ErrUnexpectedEOF
		case more == 0:
			return buf[:n], nil
		case buf[n] == '\n':
			return buf[:n], nil
		}
	}
	clear(buf)
	return nil, errors.New("the line is too long")
}

// readAll reads to the end, at most most bytes, into one buffer that the caller
// wipes.
func readAll(ctx context.Context, in *os.File, most int) ([]byte, error) {
	buf := make([]byte, most)
	n := 0
	for n < most {
		more, err := readSome(ctx, in, buf[n:])
		if err != nil {
			clear(buf)
			return nil, err
		}
		if more == 0 {
			break
		}
		n += more
	}
	return buf[:n], nil
}

// readSome is one read that ctx can end; 0: there is no more.
func readSome(ctx context.Context, in *os.File, buf []byte) (int, error) {
	fd := int(in.Fd())
	for {
		if err := readable(ctx, fd); err != nil {
			return 0, err
		}
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		}
		return n, nil
	}
}

// isTerminal says whether somebody sits at the other end.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// readable waits until fd has something to read, or ctx ends.
func readable(ctx context.Context, fd int) error {
	wake, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wake.Close()
	defer end.Close()
	defer context.AfterFunc(ctx, func() { _ = end.Close() })()
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}, -1)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.EINTR):
		default:
			return err
		}
	}
}
