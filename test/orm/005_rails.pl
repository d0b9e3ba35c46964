# Active Record's save, upsert and update_all lose nothing and send nothing twice.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use ORM;

ORM::run('Active Record', '/usr/bin/ruby', "$FindBin::RealBin/rails_app.rb");
