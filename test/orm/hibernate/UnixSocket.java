// PostgreSQL's socket in a folder of the test's own, for JDBC, which by itself has TCP only.

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.Socket;
import java.net.SocketAddress;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;
import javax.net.SocketFactory;

class UnixSocket extends Socket {
    private final SocketChannel channel;

    UnixSocket(String path) throws IOException {
        channel = SocketChannel.open(UnixDomainSocketAddress.of(path));
    }

    @Override public void connect(SocketAddress ignored, int timeout) { }
    @Override public boolean isConnected() { return true; }
    @Override public InputStream getInputStream() { return Channels.newInputStream(channel); }
    @Override public OutputStream getOutputStream() { return Channels.newOutputStream(channel); }
    @Override public void close() throws IOException { channel.close(); }
    @Override public boolean isClosed() { return !channel.isOpen(); }
    @Override public void setTcpNoDelay(boolean on) { }
    @Override public void setKeepAlive(boolean on) { }
    @Override public void setSoTimeout(int timeout) { }
    @Override public int getSoTimeout() { return 0; }

    public static class Factory extends SocketFactory {
        private final String path;

        public Factory(String path) {
            this.path = path;
        }

        @Override public Socket createSocket() throws IOException { return new UnixSocket(path); }
        @Override public Socket createSocket(String host, int port) throws IOException { return createSocket(); }
        @Override public Socket createSocket(InetAddress host, int port) throws IOException { return createSocket(); }
        @Override public Socket createSocket(String host, int port, InetAddress local, int localPort) throws IOException { return createSocket(); }
        @Override public Socket createSocket(InetAddress host, int port, InetAddress local, int localPort) throws IOException { return createSocket(); }
    }
}
