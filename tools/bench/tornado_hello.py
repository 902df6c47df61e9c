"""Hello from Python's Tornado, one process."""
import sys

import tornado.httpserver
import tornado.ioloop
import tornado.netutil
import tornado.web


class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write("Hello, world")


server = tornado.httpserver.HTTPServer(tornado.web.Application([("/", Hello)]))
server.add_sockets(tornado.netutil.bind_sockets(int(sys.argv[1]), "127.0.0.1", backlog=4096))
tornado.ioloop.IOLoop.current().start()
